"""TensorBoard for real, and what happens where a tracker cannot write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.conftest import Disk, cli_environment
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.tracking.board import Board
from vlmexp.tracking.opening import tracked
from vlmexp.tracking.tracker import evaluation_scalars, scalars
from vlmexp.training.stage import train_model


def points(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_the_board_shows_the_lines_of_the_metrics_file(small, tmp_path):
    config = small("tracking=tensorboard", "train.max_steps=2", "train.eval_steps=2")
    with Run.open(tmp_path / "run", config, []) as run:
        train_model(config, run)
    lines = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    folder = tmp_path / "run" / "tensorboard"
    assert points(folder, "train/loss") == [(line["step"], pytest.approx(line["loss"])) for line in lines[:2]]
    assert points(folder, "eval/loss") == [(2, pytest.approx(lines[2]["eval_loss"]))]
    record = read_json(tmp_path / "run" / "run.json")
    assert record["tracking"] == {"tool": "tensorboard", "directories": ["tensorboard"]}


def test_a_resumed_run_takes_back_what_it_repeats(tmp_path):
    first = Board(tmp_path, {"seed": 0})
    for step in (1, 2, 3):
        first.log({"step": step, "loss": 1.0 * step})
    first.close(succeeded=False)
    second = Board(tmp_path, {"seed": 0})
    second.log({"step": 2, "loss": 20.0})
    second.evaluated("finetuned", {"n": 4, "metrics": {"vqa_accuracy": 0.75}}, 2, [])
    second.close(succeeded=True)
    assert points(tmp_path, "train/loss") == [(1, 1.0), (2, 20.0)]
    assert points(tmp_path, "finetuned/vqa_accuracy") == [(2, 0.75)]


@pytest.mark.parametrize("tool", ["tensorboard", "wandb"])
def test_a_tracker_that_cannot_write_costs_no_run(small, tmp_path, tool):
    config = small(f"tracking={tool}")
    config.tracking.mode = None if tool == "tensorboard" else "nowhere"  # what wandb itself refuses
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "tensorboard").write_text("a file where the folder should be")
    with Run.open(tmp_path / "run", config, []) as run, tracked(config, run):
        run.tracker.log({"step": 1, "loss": 0.5})
        run.tracker.log({"step": 2, "loss": 0.25})
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "done"
    (note,) = record["fallbacks"]
    assert note.startswith(f"tracking.report_to={tool} failed (")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_a_full_disk_is_no_matter_of_the_tracker(disk: Disk, small):
    """What the tracker cannot write, and that it cannot, hides neither what the run came to nor why it ended."""
    config = small("tracking=tensorboard")
    disk.mount("512k")
    with Run.open(disk.folder / "run", config, []) as run, tracked(config, run):
        run.tracker.log({"step": 1, "loss": 0.5})
        disk.fill()
        for step in range(2, 400):  # until what is left of the file's last page is full
            run.tracker.log({"step": step, "loss": 0.25})
        (disk.folder / "ballast").unlink()
    record = read_json(disk.folder / "run" / "run.json")
    assert record["status"] == "done"
    (note,) = record["fallbacks"]
    assert note.startswith("tracking.report_to=tensorboard failed (")


def test_names_of_scalars():
    assert scalars({"step": 3, "loss": 0.5, "eval_rougeL": 0.25}) == {"train/loss": 0.5, "eval/rougeL": 0.25}
    result = {"n": 8, "metrics": {"bleu": 0.5}, "blind": {"metrics": {"bleu": 0.25}}}
    assert evaluation_scalars("finetuned", result) == {
        "finetuned/bleu": 0.5, "finetuned/n": 8, "finetuned_blind/bleu": 0.25,
    }  # fmt: skip


def test_without_a_tracker_none_is_imported(data_dir):
    script = "import sys, vlmexp.tracking.opening; print({'wandb', 'tensorboard', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], env=cli_environment(data_dir), capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
