"""What is written is there whole or not at all, also after a power loss."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from vlmexp.errors import UserError
from vlmexp.files import (
    DamagedFile,
    append_text,
    crc32,
    new_folder,
    read_jsonl,
    readable_rows,
    remove_folder,
    write_json,
    write_jsonl,
)
from vlmexp.models.adapter_start import load_start, save_start
from vlmexp.models.kept_answers import KeptAnswers
from vlmexp.training.checkpoints import begin, finish


def folder_save(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "below").mkdir()
        (folder / "below" / "part").write_text("a")


def answers_save(path: Path) -> None:
    KeptAnswers([torch.tensor([[1, 2]])], [], torch.float32).write(path)


def checkpoint_save(path: Path) -> None:
    begin(path)
    (path / "part").write_text("a")
    finish(path)


@pytest.mark.parametrize(
    "save",
    [
        lambda path: write_json(path, {}),
        lambda path: write_jsonl(path, [{}]),
        lambda path: save_start({"a": torch.ones(2)}, path),
        answers_save,
        folder_save,
        checkpoint_save,
    ],
)
def test_what_counts_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch, save: Callable[[Path], None]):
    events: list[tuple[str, str]] = []
    sync, rename = os.fsync, os.replace

    def synced(number: int) -> None:
        events.append(("synced", os.readlink(f"/proc/self/fd/{number}")))
        sync(number)

    def renamed(old, new) -> None:
        below = list(Path(old).rglob("*")) if Path(old).is_dir() else []
        lost = {str(path) for path in (Path(old), *below)} - {name for kind, name in events if kind == "synced"}
        assert not lost, "renamed before it was on the disk"
        rename(old, new)
        events.append(("named", str(new)))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path / "target")
    last = max(place for place, (kind, _) in enumerate(events) if kind == "named")
    assert ("synced", str(Path(events[last][1]).parent)) in events[last:], "the name itself is not on the disk"
    if save is checkpoint_save:  # its list is what has it count
        assert events.index(("synced", str(tmp_path / "target" / "part"))) < last


def test_a_folder_that_is_replaced_is_never_missing_for_good(tmp_path):
    path = tmp_path / "model"
    folder_save(path)
    with pytest.raises(RuntimeError), new_folder(path):
        raise RuntimeError
    assert [place.name for place in path.iterdir()] == ["below"]
    # As a process leaves it that was killed between the two renames.
    path.rename(tmp_path / ".model.before")
    with pytest.raises(RuntimeError), new_folder(path):
        raise RuntimeError
    assert [place.name for place in path.iterdir()] == ["below"]
    with new_folder(path) as folder:
        (folder / "new").touch()
    assert [place.name for place in path.iterdir()] == ["new"]
    remove_folder(path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("before", "after"), [("", ""), ('{"a": 1}\n', '{"a": 1}\n'), ('{"a": 1}\n{"b', '{"a": 1}\n')])
def test_a_line_is_added_behind_the_last_whole_one(tmp_path, before, after):
    path = tmp_path / "lines.jsonl"
    path.write_text(before)
    append_text(path, '{"c": "ü"}\n')
    assert path.read_text() == after + '{"c": "ü"}\n'


def test_a_file_is_not_replaced_by_a_folder(tmp_path):
    (tmp_path / "model").write_text("mine")
    with pytest.raises(NotADirectoryError), new_folder(tmp_path / "model"):
        pass
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("model", "mine")]


def test_lines_that_are_cut_or_damaged(tmp_path):
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bytes(20) + b'\n[3]\n{"b": 2}\n{"c"')
    assert readable_rows(path) == ([{"a": 1}, {"b": 2}], 2)
    assert readable_rows(tmp_path / "nothing") == ([], 0)
    path.write_text('{"a": 1}\n{"b": ')
    assert read_jsonl(path) == [{"a": 1}]
    for text in ('{"a": 1}\n{"b": ', '{"a": 1}\n{"b": 2}', ""):
        path.write_text(text)
        with pytest.raises(DamagedFile, match=r"lines.jsonl is damaged \(its last line has no end\): restore it"):
            read_jsonl(path, growing=False)


def test_checksum_and_a_start_that_is_cut(tmp_path):
    (tmp_path / "digits").write_text("123456789")
    assert crc32(tmp_path / "digits") == 0xCBF43926  # the check value of CRC-32
    save_start({"a": torch.ones(100)}, tmp_path / "start.safetensors")
    os.truncate(tmp_path / "start.safetensors", 200)
    with pytest.raises(UserError, match=r"start.safetensors has 200 bytes and should have \d+, and the training began"):
        load_start(tmp_path / "start.safetensors")
