"""Disks that are full or may not be written: real ones, mounted for the test."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file

from tests.conftest import ROOT, Disk
from vlmexp.data.prepare import prepare
from vlmexp.files import new_folder, read_json, write_json
from vlmexp.runs import Run
from vlmexp.storage import StorageError, size, storage_error, writing

PROBE = "def stage(config, run):\n    return {}\n"


def test_how_a_run_ended_is_written_to_a_full_disk(disk: Disk, compose, capsys):
    """Metrics and log do not fit any more; the status, the error and the traceback do."""

    def fill(run: Run) -> None:
        disk.fill()
        run.note_fallback("this does not fit")

    disk.mount("256k")
    with (
        pytest.raises(StorageError, match=r"run cannot be written: the disk is full"),
        Run.open(disk.folder / "run", compose(), []) as run,
    ):
        fill(run)
    record = read_json(disk.folder / "run" / "run.json")
    assert (record["status"], record["attempts"][0]["status"]) == ("failed", "failed")
    assert "the disk is full" in record["error"]
    said = capsys.readouterr().err
    assert "Logging error" not in said
    assert "in fill" in (disk.folder / "run" / "train.log").read_text()


def test_a_log_that_does_not_fit_ends_no_run(disk: Disk, compose, capsys):
    disk.mount("256k")
    with Run.open(disk.folder / "run", compose(), []):
        disk.fill()
        for number in range(3000):
            logging.getLogger("vlmexp").debug("a line that fills what is left of the log's last page %d", number)
        (disk.folder / "ballast").unlink()
    assert read_json(disk.folder / "run" / "run.json")["status"] == "done"
    said = capsys.readouterr().err
    assert said.count("train.log cannot be written any more: No space left on device") == 1
    assert "Logging error" not in said


@pytest.mark.parametrize(
    ("room", "options", "said"),
    [
        ("8k", [], "run cannot be written: the disk is full (0.0 KiB are free there). Make room"),
        ("1m", ["ro"], "run cannot be written: the file system is read-only. Have the file system of"),
    ],
)
@pytest.mark.parametrize(
    "arguments",
    [
        ["hydra.run.dir=disk/run"],
        ["-m", "seed=1,2", "hydra.sweep.dir=disk/run"],
        ["-m", "seed=1,2", "hydra.sweep.dir=disk/run", "hydra/launcher=slurm_local"],
    ],
    ids=["run", "sweep", "jobs"],
)
def test_a_directory_that_hydra_cannot_write(disk: Disk, cli, tmp_path, room, options, said, arguments):
    (tmp_path / "probe.py").write_text(PROBE)
    disk.mount(room, *options)
    done = cli(*arguments, "stage=probe.stage", PYTHONPATH=os.pathsep.join([str(ROOT), str(tmp_path), *_inherited()]))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.count("vlmexp: ") == 1
    assert said in done.stderr.replace(str(disk.folder), "disk")


def test_data_for_which_there_is_no_room(disk: Disk, vqa_files):
    disk.mount("64k")
    options = {"train": str(vqa_files / "train.jsonl"), "test": str(vqa_files / "test.jsonl")}
    columns = {"image": "picture", "question": "query", "answer": "response"}
    splits = {"train": "train", "validation": None, "test": "test"}

    def make() -> Path:
        return prepare(disk.folder, "squares", "1", "files", options, splits, 0.1, 0.1, 0, columns).folder

    disk.fill()
    with pytest.raises(StorageError, match=r"disk.* cannot be written: the disk is full.*set paths.data"):
        make()
    assert not list(disk.folder.rglob("manifest.json"))
    (disk.folder / "ballast").unlink()
    assert (make() / "manifest.json").exists()


def torch_save(path: Path) -> None:
    torch.save({"a": torch.zeros(10**6)}, path)


def safetensors_save(path: Path) -> None:
    save_file({"a": torch.zeros(10**6)}, path)


def arrow_save(path: Path) -> None:
    table = pa.table({"a": list(range(10**5))})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)


def tokenizer_save(path: Path) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({f"word {n}": n for n in range(10**5)}, "word 0")).save(str(path))


def json_save(path: Path) -> None:
    write_json(path, list(range(10**5)))


def folder_save(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "part").write_bytes(b"\0" * 10**6)


@pytest.mark.parametrize("save", [torch_save, safetensors_save, arrow_save, tokenizer_save, json_save, folder_save])
def test_whatever_fails_to_write_says_the_same(disk: Disk, save: Callable[[Path], None]):
    disk.mount("300k")
    with pytest.raises(StorageError) as caught, writing(disk.folder / "x", "or go elsewhere", "it takes 1 MiB"):
        save(disk.folder / "x")
    said = str(caught.value)
    assert "x cannot be written: the disk is full (" in said
    assert said.endswith("KiB are free there, it takes 1 MiB). Make room, or go elsewhere.")


def test_what_is_not_about_the_disk_stays_what_it_is(tmp_path):
    with pytest.raises(RuntimeError, match="shapes"), writing(tmp_path):
        raise RuntimeError("shapes do not fit")
    with pytest.raises(PermissionError), writing(tmp_path / "x"):
        raise PermissionError(13, "Permission denied", "/etc/secret")  # it was to be read
    assert storage_error(PermissionError(13, "Permission denied", "/etc/secret"), tmp_path) is None
    assert storage_error(OSError(28, "No space left on device"), tmp_path) is None  # there is room: it was elsewhere
    elsewhere = storage_error(OSError(28, "No space left on device", "/dev/shm/x"), tmp_path)
    assert str(elsewhere).startswith("/dev/shm/x cannot be written: the disk is full (")


def test_sizes():
    assert [size(count) for count in (0, 1536, 2**20, 3 * 2**30 + 2**29)] == [
        "0.0 KiB",
        "1.5 KiB",
        "1.0 MiB",
        "3.5 GiB",
    ]


def _inherited() -> list[str]:
    return list(filter(None, [os.environ.get("PYTHONPATH")]))
