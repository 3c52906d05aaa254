"""A suite: several data sets, one load of the weights, and for each what it would have had by itself."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import yaml

from tests.conftest import cli_environment
from tests.data.test_benchmarks import written
from tests.tracking.test_board import points
from vlmexp import command_line, main
from vlmexp.config import Config
from vlmexp.errors import UserError
from vlmexp.evaluation.stage import eval_base, eval_finetuned, load_model
from vlmexp.evaluation.suite import Gain, cells, gain_interval, gains
from vlmexp.files import read_json, read_jsonl
from vlmexp.pipeline import pipeline
from vlmexp.runs import Run, read_config
from vlmexp.suites import of_member

MEMBERS = ["text", "charts", "things"]
SUITE = f"evaluation.suite=[{','.join(MEMBERS)}]"
OF = {"text": ("vizwiz_vqa", "vizwiz"), "charts": ("chartqa", "chartqa"), "things": ("pope", "pope")}
QUICK = ["threads=1", "evaluation.batch_size=4", "evaluation.invariance_examples=2", "evaluation.max_examples=10"]
# What is said of the run's own data set, and would show in an answer or a score of another.
OWN = [
    "experiment=own", "dataset.instruction=Never", "dataset.max_new_tokens=1", "dataset.metrics=[bleu]",
    "dataset.split_seed=3",
]  # fmt: skip


@pytest.fixture(scope="module")
def replicas(tmp_path_factory) -> Path:
    """A folder of one's own with YAML files for three benchmarks, each built on ours."""
    folder = tmp_path_factory.mktemp("replicas")
    (folder / "dataset").mkdir()
    (folder / "experiment").mkdir()
    (folder / "experiment" / "own.yaml").write_text("# @package _global_\ndataset: {max_examples: {test: 1}}\n")
    for name, (published, ours) in OF.items():
        split = "val" if ours == "vizwiz" else "test"
        path = written(published, ours, split, folder / ours)
        text = f"defaults: [{ours}, _self_]\noptions: {{path: {path}}}\n"
        text += "splits: {train: null}\n" if ours == "vizwiz" else ""
        (folder / "dataset" / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def squares(replicas, vqa_files) -> str:
    """The choice of a data set to train on."""
    options = f"options: {{train: {vqa_files}/train.jsonl, test: {vqa_files}/test.jsonl}}"
    columns = "columns: {image: picture, question: query, answer: response}"
    text = f"name: squares\nsource: files\n{options}\n{columns}\nmetrics: [vqa_accuracy]\nmax_new_tokens: 4\n"
    (replicas / "dataset" / "squares.yaml").write_text(text)
    return "dataset=squares"


@pytest.fixture
def suite(tmp_path, data_dir, replicas) -> Callable[..., Config]:
    """Compose a config as the command line does, its data sets included."""

    def compose_config(*overrides: str) -> Config:
        search = f"hydra.searchpath=[file://{replicas}]"
        fixed = [search, f"paths.data={data_dir}", f"paths.outputs={tmp_path}", *QUICK]
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(main.CONFIG_DIR)):
            return main.check(hydra.compose("config", [*fixed, *overrides], return_hydra_config=True))

    return compose_config


def evaluated(folder: Path, name: str) -> tuple[dict, list[dict]]:
    start = f"{name}_vlm_model_"
    path = folder / "evaluation" / f"{start}evaluation.json"
    return read_json(path), read_jsonl(path.with_name(f"{start}predictions.jsonl"))


def test_a_data_set_is_answered_as_by_itself_and_the_weights_are_loaded_once(suite, tmp_path, monkeypatch, capsys):
    loads = []
    monkeypatch.setattr("vlmexp.evaluation.stage.load_model", lambda *a: loads.append(a) or load_model(*a))
    config = suite("stage=eval_base", SUITE, *OWN)
    with Run.open(tmp_path / "together", config, []) as run:
        result = eval_base(config, run)
        assert [found.name for found in gains(config, run)] == MEMBERS
    assert len(loads) == 1
    assert not (tmp_path / "together" / "evaluation").exists()  # of the run's own data set
    for name in MEMBERS:
        alone = suite("stage=eval_base", f"dataset={name}")
        assert dataclasses.replace(of_member(config, name), train=alone.train) == alone
        with Run.open(tmp_path / name, alone, []) as run:
            eval_base(alone, run)
        there, here = evaluated(tmp_path / "together" / "suite" / name, "base"), evaluated(tmp_path / name, "base")
        assert there == here
        assert result[f"{name}/{here[0]['main_metric']}"] == here[0]["metrics"][here[0]["main_metric"]]
    record = read_json(tmp_path / "together" / "run.json")
    assert {name: part["stages"]["eval_base"]["n"] for name, part in record["suite"].items()} == {
        "text": 10, "charts": 10, "things": 10
    }  # fmt: skip
    assert read_config(tmp_path / "together")["members"]["things"]["metrics"] == ["pope"]
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*MEMBERS, "POPE accuracy", "images"])


TRAINING = [
    "train.max_steps=2", "train.per_device_train_batch_size=8", "train.eval_steps=1", "train.save_steps=1",
    "train.learning_rate=0.01", "export.parity_examples=0",
]  # fmt: skip


def test_a_pipeline_has_the_suite_beside_its_own_data(suite, squares, tmp_path, capsys):
    """One of the suite is the run's own data set, and is not asked again; another is watched during the training."""
    watch = ["train.metric_for_best_model=things/pope_accuracy", "train.eval_generation_examples=4"]
    watch += ["tracking=tensorboard"]
    config = suite("evaluation.suite=[things,squares]", squares, *TRAINING, *watch)
    with Run.open(tmp_path / "run", config, []) as run:
        result = pipeline(config, run)
        rows = gains(config, run)
    assert [row.name for row in rows] == ["things", "squares"]
    assert all(row.base is not None and row.finetuned is not None and row.low is not None for row in rows)
    assert "things/pope_accuracy" in result
    assert result["squares/vqa_accuracy"] == result["metric"]
    record = read_json(tmp_path / "run" / "run.json")
    for stage, count in (("eval_base", 10 + 2), ("eval_finetuned", 10 + 2 + 10)):
        assert record["suite"]["squares"]["stages"][stage]["answers"] == {"generated": 0, "taken_from_disk": count}
        assert record["suite"]["things"]["stages"][stage]["answers"]["generated"] == count
    for name in ("base", "finetuned"):
        assert evaluated(tmp_path / "run", name) == evaluated(tmp_path / "run" / "suite" / "squares", name)
    logged = [row for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "eval_loss" in row]
    assert [row["eval_n"] for row in logged] == [4, 4]
    assert record["stages"]["train"]["best_metric"] == max(row["eval_things/pope_accuracy"] for row in logged)
    board = tmp_path / "run" / "tensorboard"
    assert [step for step, _ in points(board, "eval/things/pope_accuracy")] == [1, 2]
    assert points(board, "things/finetuned/pope_accuracy") == [(2, pytest.approx(rows[0].finetuned))]
    assert points(board, "squares/base/n") == [(0, 10)]
    assert any(text.startswith("things: there is no validation split") for text in record["fallbacks"])
    assert "fine-tuned" in capsys.readouterr().out

    # What the command line makes of `stage=eval_finetuned run=R dataset=things`: nothing of the training's own data.
    given = [f"run={tmp_path / 'run'}", "stage=eval_finetuned", "dataset=things"]
    (tmp_path / "run" / "run.json").write_text(
        json.dumps(record | {"overrides": [squares, *OWN[1:], *TRAINING, SUITE, "evaluation.metrics=[bleu]"]})
    )
    arguments = command_line.inherit_from_run(given, main.CONFIG_DIR)
    assert sorted(arguments) == sorted([*TRAINING, *given[1:], f"run='{tmp_path / 'run'}'"])
    base = command_line.inherit_from_run([given[0], "stage=eval_base", "dataset=things"], main.CONFIG_DIR)
    assert not any(text.startswith(("hydra.run.dir", "dataset.")) for text in base)  # the run has other data
    alone = suite(*arguments)
    with Run.open(tmp_path / "alone", alone, arguments) as run:
        eval_finetuned(alone, run)
    assert evaluated(tmp_path / "alone", "finetuned") == evaluated(tmp_path / "run" / "suite" / "things", "finetuned")
    # A suite in a directory of its own takes the base model's answers from the run that trained.
    again = suite(f"run={tmp_path / 'run'}", "stage=eval_finetuned", "evaluation.suite=[things]")
    with Run.open(tmp_path / "again", again, []) as run:
        eval_finetuned(again, run)
        assert gains(again, run) == rows[:1]


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["evaluation.suite=[chartq]"], r"evaluation.suite names chartq: .*did you mean 'chartqa'\? There are: ai2d,"),
        (["evaluation.suite=[chart]"], r"did you mean 'charts'\?"),
        (["evaluation.suite=[../dataset/pope]"], r"evaluation.suite names \.\./dataset/pope: there is no data set"),
        (["evaluation.suite=[pope,pope]"], r"evaluation.suite=.*'pope' is there twice"),
        (["evaluation.suite=[]"], r"evaluation.suite=\[\] is empty"),
        (["evaluation.suite=[pope]", "evaluation.split=validation"], r"names pope: it has no validation split"),
        (["evaluation.suite=[msrvtt_qa]"], r"msrvtt_qa: .* \(dataset\.\* is here what the file of msrvtt_qa says"),
        (["evaluation.suite=[files]"], r"evaluation.suite names files: dataset.options.train has no default"),
        (["train.metric_for_best_model=pop/pope_accuracy"], r"best_model names pop: .*did you mean 'pope'"),
        (["train.metric_for_best_model=pope/pope_acuracy"], r"'pope_acuracy' does not exist; did you mean 'pope_accu"),
        (["train.metric_for_best_model=pope/loss"], r"best_model=pope/loss: pope is answered, and has no loss"),
    ],
)
def test_a_suite_that_cannot_be_is_refused_at_once(suite, overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        suite(*overrides)


def test_a_file_that_sets_more_than_the_data_set_is_for_an_evaluation_by_itself(suite, replicas):
    text = "# @package _global_\ndefaults: [things@dataset, _self_]\ncollator: {max_length: 9}\n"
    (replicas / "dataset" / "wide.yaml").write_text(text)
    with pytest.raises(UserError, match=r"names wide: its file sets collator as well, .* with dataset=wide"):
        suite("evaluation.suite=[wide]")


def test_a_data_set_without_the_split_is_named_before_weights_are_read(suite, replicas, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmexp.evaluation.stage.load_model", pytest.fail)
    text = (replicas / "dataset" / "things.yaml").read_text()
    (replicas / "dataset" / "odd.yaml").write_text(text + "splits: {test: nights}\n")
    config = suite("stage=eval_base", "evaluation.suite=[things,odd]")
    with (
        Run.open(tmp_path / "run", config, []) as run,
        pytest.raises(UserError, match=r"^odd: dataset.splits.test=nights: the source has no such split; it has test"),
    ):
        eval_base(config, run)


def test_a_data_set_whose_file_has_changed_is_not_mixed_with_what_it_was(suite, replicas, tmp_path):
    path = replicas / "dataset" / "moving.yaml"
    text = (replicas / "dataset" / "things.yaml").read_text()
    path.write_text(text)
    config = suite("stage=eval_base", "evaluation.suite=[moving]")
    with Run.open(tmp_path, config, []) as run:
        eval_base(config, run)
    path.write_text(text + "max_new_tokens: 9\n")
    config = suite("stage=eval_base", "evaluation.suite=[moving,things]")  # more of them would be no other run
    with (
        Run.open(tmp_path, config, []) as run,
        pytest.raises(UserError, match=r"moving when .*: dataset.max_new_tokens was 128 and is 9"),
    ):
        eval_base(config, run)


def test_a_choice_of_the_group_is_a_list(suite):
    found = suite("suite=hallucination")
    assert found.evaluation.suite == list(found.members) == ["pope", "mme"]
    assert suite("suite=hallucination", "evaluation.suite=[gqa]").evaluation.suite == ["gqa"]
    assert suite().evaluation.suite is None
    assert suite().members == {}
    for path in main.CONFIG_DIR.glob("suite/*.yaml"):
        names = (yaml.safe_load(path.read_text()) or {}).get("suite", [])
        assert all((main.CONFIG_DIR / "dataset" / f"{name}.yaml").is_file() for name in names)
        assert bool(names) == (path.stem != "none")


def test_the_gain_is_of_images():
    """Two images with two questions each: the first gains 1 a question, the second nothing."""
    rows = [
        [{"id": str(k), "images": [str(k // 2)], "scores": {"m": gain * (k < 2)}} for k in range(4)] for gain in (0, 1)
    ]
    # Of two images drawn, both are the second in a quarter of the draws, and both the first in another.
    assert gain_interval(rows[0], rows[1], "m") == (0.0, 1.0)
    alone = [[row | {"images": [row["id"]]} for row in found] for found in rows]
    low, high = gain_interval(*alone, "m")  # of four questions drawn, none gains with a chance of 1/16
    assert (low, high) == (0.0, 1.0)
    assert gain_interval(rows[0], rows[1][:1], "m") == (1.0, 1.0)
    assert gain_interval(rows[0], [{"id": "0", "scores": {}}], "m") is None


@pytest.mark.parametrize(
    ("values", "verdict", "gain", "interval"),
    [
        ((0.5, 0.25, -0.4, -0.1), "LOST", "-25.00", "[-40.00, -10.00]"),
        ((0.5, 0.25, -0.4, 0.1), "lower, may be luck", "-25.00", "[-40.00, +10.00]"),
        ((0.5, 0.75, -0.1, 0.4), "may be luck", "+25.00", "[-10.00, +40.00]"),
        ((0.5, 0.75, 0.1, 0.4), "gained", "+25.00", "[+10.00, +40.00]"),
        ((0.5, 0.25), "lower", "-25.00", "\N{EN DASH}"),
        ((0.5, None, 0.4, 0.6), "", "\N{EN DASH}", "[40.00, 60.00]"),
    ],
)
def test_what_was_lost_is_said_in_words(values, verdict, gain, interval):
    row = cells(Gain("things", "pope_accuracy", 1000, 200, *values))
    assert (row["verdict"], row["gain"], row["95 % interval"]) == (verdict, gain, interval)
    assert (row["metric"], row["n"], row["images"], row["base"]) == ("POPE accuracy", "1,000", "200", "50.00 %")


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_where_it_was(suite, replicas, tmp_path, data_dir):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    config = suite("stage=eval_base", SUITE)
    with Run.open(whole, config, []) as run:
        eval_base(config, run)
    options = [*QUICK, "stage=eval_base", SUITE, f"hydra.searchpath=[file://{replicas}]", f"paths.data={data_dir}"]
    command = [sys.executable, "-m", "vlmexp", *options, f"hydra.run.dir={killed}"]
    process = subprocess.Popen(command, cwd=tmp_path, env=cli_environment(data_dir), stderr=subprocess.DEVNULL)
    journal = killed / "suite" / "charts" / "evaluation" / "base_vlm_model_predictions.partial-rank0.jsonl"
    while not (journal.is_file() and re.search(rb'"prediction".*\n', journal.read_bytes())):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    with Run.open(killed, config, []) as run:
        eval_base(config, run)
    parts = read_json(killed / "run.json")["suite"]
    assert parts["text"]["stages"]["eval_base"]["answers"] == {"generated": 12, "taken_from_disk": 0}  # before the kill
    asked = parts["charts"]["stages"]["eval_base"]["answers"]
    assert asked["taken_from_disk"] >= 1
    assert sum(asked.values()) == 12
    files = sorted(path.relative_to(whole) for path in whole.glob("suite/*/evaluation/*"))
    assert len(files) == 2 * len(MEMBERS)
    assert files == sorted(path.relative_to(killed) for path in killed.glob("suite/*/evaluation/*"))
    for path in files:
        assert (whole / path).read_bytes() == (killed / path).read_bytes()
