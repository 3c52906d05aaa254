"""A training on disks that are full or may not be written: real ones, mounted for the test."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.conftest import Disk
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.storage import StorageError
from vlmexp.training.stage import train


def run_training(config, directory: Path) -> None:
    with Run.open(directory, config, []) as run:
        train(config, run)


def losses(directory: Path) -> list[tuple]:
    return [(row["step"], row.get("loss"), row.get("grad_norm")) for row in read_jsonl(directory / "metrics.jsonl")]


def test_a_disk_that_fills_up_during_a_training(disk: Disk, small, tmp_path: Path):
    """It fails in a checkpoint, then in the merged model, and ends where an undisturbed training does."""
    config = small("train.eval_strategy=no", "train.max_steps=9")
    run_training(config, tmp_path / "calm")
    used = sum(path.stat().st_size for path in (tmp_path / "calm" / "checkpoints" / "checkpoint-3").iterdir())
    run = disk.folder / "run"

    disk.mount(str(used + 600_000))
    with pytest.raises(StorageError) as caught:
        run_training(config, run)
    said = str(caught.value)
    assert said.startswith(f"{run / 'checkpoints' / 'checkpoint-6'} cannot be written: the disk is full (")
    assert "KiB are free there, a checkpoint takes about" in said
    record = read_json(run / "run.json")
    assert (record["status"], record["error"]) == ("failed", f"StorageError: {said}")
    assert record["attempts"][0]["status"] == "failed"
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert "Traceback" in (run / "train.log").read_text()

    disk.mount(str(5 * used + 1_000_000))
    with pytest.raises(StorageError, match=r"deployment_model cannot be written: the disk is full \(.* merged model"):
        run_training(config, run)
    record = read_json(run / "run.json")
    assert record["stages"]["train"]["resumed_from"] == "checkpoint-3"
    assert record["status"] == "failed"
    assert not [path for path in run.iterdir() if "deployment" in path.name]

    disk.mount("100m")
    run_training(config, run)
    assert read_json(run / "run.json")["status"] == "done"
    assert losses(run) == losses(tmp_path / "calm")
    for name in ("model/adapter_model.safetensors", "deployment_model/model.safetensors"):
        assert (run / name).read_bytes() == (tmp_path / "calm" / name).read_bytes()


def test_a_disk_without_room_for_a_checkpoint_is_known_before_the_first_step(disk: Disk, small):
    disk.mount("400k")
    with pytest.raises(StorageError, match=r"checkpoints has no room for a checkpoint: it takes about .* MiB, and"):
        run_training(small(), disk.folder / "run")
    assert read_json(disk.folder / "run" / "run.json")["status"] == "failed"
    assert losses(disk.folder / "run") == []


def test_checkpoints_that_may_not_be_written_are_known_before_the_first_step(disk: Disk, small, tmp_path: Path):
    disk.folder = tmp_path / "run" / "checkpoints"
    disk.folder.mkdir(parents=True)
    disk.mount("1m", "ro")
    try:
        with pytest.raises(StorageError, match=r"checkpoints/.* cannot be written: the file system is read-only"):
            run_training(small(), tmp_path / "run")
    finally:
        subprocess.run(["umount", disk.folder], check=True)
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"
    assert losses(tmp_path / "run") == []
