"""The command lines of stage=predict, in a process of their own: a run's adapter, its merged model, a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tests.conftest import cli_environment
from vlmexp import command_line, quoting
from vlmexp.files import read_json, read_jsonl
from vlmexp.predict.stage import predict
from vlmexp.runs import Run
from vlmexp.training.stage import train


@pytest.mark.parametrize(
    "text",
    [
        "What is it?", "Is it red, or blue?", "what's it (really) = {x} [or] #1! 什么", '"Stop" is written "here"?', "",
        "null?", "a: b", "* $HOME ~ % | &",
        "${seed} and \\${x} and \\\\${x}", "1e5", "'", "\\", "'a' and 'b'", "yes\nno",
    ],
)  # fmt: skip
def test_a_question_is_taken_to_the_letter(text):
    (override,) = command_line.quote_texts([f"question={text}"])
    if text:
        read = OmegaConf.create({"seed": 5, "x": "no", "question": quoting.parsed(override).value()})
        assert read.question == text
    assert command_line.quote_texts([override]) == [override]


def test_files_of_odd_names_are_taken_to_the_letter(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("[a].png", "a,b.png"):
        (tmp_path / name).touch()

    def read(argument: str) -> object:
        return quoting.parsed(command_line.quote_texts([argument])[0]).value()

    assert read("image=[a].png") == "[a].png"
    assert read("image=it's (1), = 5.png") == "it's (1), = 5.png"
    assert read("image=2024") == "2024"
    assert read("video='a b.mp4'") == "a b.mp4"
    assert read("image=[a.png,b (1).png]") == ["a.png", "b (1).png"]
    assert read("image=null") is None
    assert command_line.quote_texts(["peft.r=8,16", "-m", "run=a b"]) == ["peft.r=8,16", "-m", "run=a b"]


@pytest.mark.slow
def test_a_run_is_asked_and_a_kill_costs_no_answer(compose, cli, draw, tmp_path, data_dir):
    def ask(folder: str, *overrides: str) -> list[dict[str, Any]]:
        config = compose("stage=predict", "threads=1", f"run={tmp_path}/R", *overrides)
        with Run.open(tmp_path / folder, config, []) as run:
            predict(config, run)
        return read_jsonl(tmp_path / folder / "predictions" / "predictions.jsonl")

    sizes = "dataset.max_examples={train: 64, validation: 4, test: 4}"
    trained = compose("stage=train", "train=smoke", "threads=1", sizes)
    with Run.open(tmp_path / "R", trained, [sizes]) as run:
        train(trained, run)
    typed = [f"image={draw('red')}", "question=What color is it?", "evaluation.max_new_tokens=8"]
    said = {kind: ask(kind, *typed, f"predict.weights={kind}") for kind in ("adapter", "merged", "base")}
    assert said["adapter"] == said["merged"]
    assert len(said["base"]) == 1
    done = [read_json(tmp_path / kind / "run.json")["stages"]["predict"] for kind in said]
    assert [entry["weights"] for entry in done] == ["adapter", "merged", "base"]

    split = ["predict.split=test", "predict.max_examples=300", "evaluation.batch_size=8"]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "vlmexp", "stage=predict", "threads=1", f"run={tmp_path}/R", *split,
         f"hydra.run.dir={killed}"],
        cwd=tmp_path, env=cli_environment(data_dir), stderr=subprocess.DEVNULL,
    )  # fmt: skip
    while not answers_on_disk(killed):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    before = answers_on_disk(killed)
    assert 0 < before < 300
    resumed = cli(f"run={killed}", timeout=300)
    assert resumed.returncode == 0, resumed.stderr
    assert "300 questions answered by the trained model of " in resumed.stdout  # not the 4 of the training's test split
    counted = read_json(killed / "run.json")["stages"]["predict"]["answers"]
    assert counted == {"generated": 300 - before, "taken_from_disk": before}
    assert read_jsonl(killed / "predictions" / "predictions.jsonl") == ask("whole", *split)


def answers_on_disk(run: Path) -> int:
    return sum(len(read_jsonl(path)[1:]) for path in run.glob("predictions/*.partial-rank*.jsonl"))
