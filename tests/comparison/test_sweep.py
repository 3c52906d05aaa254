"""A real sweep over rank, learning rate and seed, of whose twelve points one fails and one is killed; compared."""

from __future__ import annotations

import csv
import io
import json
import multiprocessing
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from vlmexp.comparison.stage import compare
from vlmexp.files import read_json, write_json
from vlmexp.launch.sweep import Sweep
from vlmexp.pipeline import pipeline
from vlmexp.runs import Run
from vlmexp.storage import ImpossibleName

pytestmark = pytest.mark.slow

KILLED, FAILED = 4, 7
POINTS = [
    [f"peft.r={rank}", f"train.learning_rate={rate}", f"seed={seed}"]
    for rank in (2, 4) for rate in ("0.0005", "0.005") for seed in (0, 1, 2)
]  # fmt: skip
TINY = [
    "dataset=files", "dataset.columns={image: picture, question: query, answer: response}", "threads=1",
    "train.max_steps=2", "train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=1",
    "train.logging_steps=1", "train.eval_strategy=no", "train.memory_preflight=false", "evaluation.blind=none",
    "evaluation.max_new_tokens=2", "evaluation.max_examples=8", "export.parity_examples=1",
]  # fmt: skip


def run_point(config, directory: Path, overrides: list[str]) -> None:
    with Run.open(directory, config, overrides) as run:
        run.conclude(pipeline(config, run))


def kill_point(config, directory: Path, overrides: list[str]) -> None:
    """Let a process begin the point and end it with SIGKILL after its first step; then let a while pass."""
    process = multiprocessing.get_context("fork").Process(target=run_point, args=(config, directory, overrides))
    process.start()
    deadline = time.monotonic() + 120
    while not (directory / "metrics.jsonl").exists():
        assert process.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.join()
    record = read_json(directory / "run.json")
    record["heartbeat"] = (datetime.fromisoformat(record["heartbeat"]) - timedelta(minutes=2)).isoformat()
    write_json(directory / "run.json", record)


@pytest.fixture
def sweep(compose, vqa_files, tmp_path) -> Path:
    directory = tmp_path / "multirun" / "ranks"
    files = [f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
    points = Sweep(directory).add(POINTS)
    # The killed one first: a process that has not trained can be forked.
    for point in sorted(points, key=lambda point: point.point != KILLED):
        run_directory, config = directory / point.directory, compose(*TINY, *files, *point.overrides)
        if point.point == KILLED:
            kill_point(config, run_directory, point.overrides)
        elif point.point == FAILED:
            (run_directory / "model").parent.mkdir()
            (run_directory / "model").write_text("a file where a folder has to go")
            with pytest.raises(ImpossibleName, match="a part of it is a file"):
                run_point(config, run_directory, point.overrides)
        else:
            run_point(config, run_directory, point.overrides)
    return directory


def test_twelve_points_are_compared(sweep, compose, capsys, tmp_path):
    def said(*overrides: str) -> str:
        capsys.readouterr()
        compare(compose("stage=compare", f"compare.runs=[{sweep}]", *overrides))
        return capsys.readouterr().out

    rows = list(csv.DictReader(io.StringIO(said("compare.format=csv"))))
    assert [row["run"] for row in rows[10:]] == [str(FAILED), str(KILLED)]
    assert [row["status"] for row in rows] == ["done"] * 10 + ["failed", "lost"]
    assert rows[10]["note"].startswith("ImpossibleName")
    assert rows[11]["note"].startswith("silent for ")
    assert {row["interval"] for row in rows[:10]} == {"bootstrap"}
    scores = [float(row["vqa_accuracy"]) for row in rows[:10]]
    assert scores == sorted(scores, reverse=True)
    assert {row["n"] for row in rows[:10]} == {"8"}

    table = said()
    assert table.startswith("12 runs: 10 done, ")
    assert all(state in table.splitlines()[0] for state in ("1 failed", "1 lost"))
    assert "95 % intervals: bootstrap over examples." in table
    best = said("compare.best=true").splitlines()
    assert best[0] == str(sweep / rows[0]["run"])
    assert best[1] == f"python -m vlmexp {' '.join(POINTS[int(rows[0]['run'])])}"
    grouped = list(csv.DictReader(io.StringIO(said("compare.group_seeds=true", "compare.format=csv"))))
    assert sorted(row["seeds"] for row in grouped) == ["2", "2", "3", "3"]
    assert f"python -m vlmexp run={sweep / str(KILLED)}" in said("compare.failed=true")
    paired = json.loads(said("compare.paired=[0,3]", "compare.format=json"))
    assert paired["examples"] == paired["gains"] + paired["losses"] + paired["ties"] == 8
    told = csv.DictReader(io.StringIO(said("compare.diff=[0,3]", "compare.format=csv")))
    assert [(row["what"], row["first"], row["second"]) for row in told if row["part"] == "config"] == [
        ("train.learning_rate", "0.0005", "0.005")
    ]

    said(f"compare.html={tmp_path / 'report.html'}")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    content = json.loads(page.partition('id="data">')[2].partition("</script>")[0])
    assert content["options"] == ["peft.r", "seed", "train.learning_rate"]
    assert [run["status"] for run in content["runs"]] == ["done"] * 10 + ["failed", "lost"]
    assert len(content["examples"]) == 8
    assert all(content["pictures"][name] for example in content["examples"] for name in example["images"])
