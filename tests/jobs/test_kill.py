"""A real process killed with -9 again and again ends where an undisturbed one does, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import cli_environment, only_run
from vlmexp.files import read_json, read_jsonl

pytestmark = pytest.mark.slow

JOB = [
    "threads=1", "train.per_device_train_batch_size=16", "train.max_steps=40", "train.logging_steps=1",
    "train.eval_steps=10", "train.save_steps=10", "peft.lora_dropout=0.1", "evaluation.batch_size=64",
    "dataset.max_examples={train: 800, validation: 40, test: 120}",
]  # fmt: skip


def kill_when(condition: Callable[[], bool], arguments: list[str], cwd: Path, data_dir: Path) -> None:
    command = [sys.executable, "-m", "vlmexp", *arguments]
    process = subprocess.Popen(command, cwd=cwd, env=cli_environment(data_dir), stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_killed_at_every_kind_of_moment(cli, tmp_path, data_dir):
    undisturbed, disturbed = tmp_path / "undisturbed", tmp_path / "disturbed"
    undisturbed.mkdir()
    disturbed.mkdir()
    assert cli(*JOB, cwd=undisturbed, timeout=300).returncode == 0

    def run() -> Path:
        return only_run(disturbed)

    def steps() -> int:
        return max((row["step"] for row in read_jsonl(run() / "metrics.jsonl")), default=0)

    def inside_evaluation() -> bool:
        found = list(disturbed.glob("outputs/*/*/run.json"))
        return bool(found) and "eval_base" in read_json(found[0])["stages"]

    def saving(step: int) -> Callable[[], bool]:
        return lambda: (run() / "checkpoints" / f"checkpoint-{step}").exists()

    moments: list[Callable[[], bool]] = [
        inside_evaluation,
        lambda: steps() >= 5,  # before the first checkpoint
        saving(20),
        lambda: steps() >= 33,
        lambda: bool(list(run().glob(".model.*"))),
        lambda: (run() / "model").exists(),
        lambda: bool(list(run().glob(".deployment_model.*"))),  # between merging and the check
        lambda: bool(list(run().glob("evaluation/finetuned_vlm_model_blind_answers.partial-*"))),
    ]
    for number, moment in enumerate(moments):
        kill_when(moment, [*JOB, *([f"run={run()}"] if number else [])], disturbed, data_dir)
        assert read_json(run() / "run.json")["status"] == "running"
    done = cli(*JOB, f"run={run()}", cwd=disturbed, timeout=300)
    assert done.returncode == 0, done.stderr

    first, second = only_run(undisturbed), run()
    record = read_json(second / "run.json")
    assert record["status"] == "done"
    assert len(record["attempts"]) == len(moments) + 1
    asked = record["stages"]["eval_finetuned"]["answers"]
    assert asked["taken_from_disk"] >= 120 + 4  # all of the answers themselves; the rest is of the blind evaluation
    assert sum(asked.values()) == 120 + 4 + 120
    for name in (
        "model/adapter_model.safetensors",
        "deployment_model/model.safetensors",
        "evaluation/base_vlm_model_evaluation.json",
        "evaluation/finetuned_vlm_model_evaluation.json",
        "evaluation/finetuned_vlm_model_predictions.jsonl",
    ):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    timed = ("samples_per_s", "tokens_per_s", "mfu", "data_wait", "memory_gib")
    lines = [
        [{k: v for k, v in row.items() if k not in timed} for row in read_jsonl(directory / "metrics.jsonl")]
        for directory in (first, second)
    ]
    assert lines[0] == lines[1]
    assert not [path for path in second.iterdir() if path.name.startswith((".model", ".deployment"))]

    # A finished run gives its stored result, and another configuration cannot have its directory.
    again = cli(*JOB, f"run={second}", cwd=disturbed)
    assert again.returncode == 0
    assert "fine-tuned" in again.stdout
    refused = cli(f"run={second}", "peft.r=3", cwd=disturbed)
    assert refused.returncode == 2
    assert "peft.r is 16 there and 3 here" in refused.stderr
    refused = cli(*JOB, f"hydra.run.dir={second}", "peft.r=3", cwd=disturbed)
    assert refused.returncode == 2
    assert "peft.r is 16 there and 3 here" in refused.stderr
    assert lines[1] == [
        {k: v for k, v in row.items() if k not in timed} for row in read_jsonl(second / "metrics.jsonl")
    ]
