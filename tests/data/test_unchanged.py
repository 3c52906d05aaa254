"""Stored and referenced files that are changed after their data were prepared."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

import pytest
from PIL import Image

from vlmexp.data import unchanged
from vlmexp.data.images import load_image
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.files import write_jsonl


@pytest.fixture
def make(tmp_path):
    """Prepare eight rows: four images stored (they come as base64), four used where they lie."""
    import base64

    source = tmp_path / "source"
    source.mkdir()
    rows = []
    for number in range(8):
        path = source / f"{number}.bmp"
        Image.new("RGB", (16, 16), (number * 30, 0, 0)).save(path)
        inside = f"data:image/bmp;base64,{base64.b64encode(path.read_bytes()).decode()}"
        rows.append({"image": inside if number < 4 else path.name, "question": f"{number}?", "answer": "a"})
    write_jsonl(source / "train.jsonl", rows)
    splits = {"train": "train", "validation": None, "test": None}
    columns = {name: name for name in ("image", "question", "answer")}

    def prepared(data: Path = tmp_path / "data") -> Prepared:
        return prepare(data, "eight", "1", "files", {"train": str(source / "train.jsonl")}, splits, 0, 0, 0, columns)

    return prepared


@pytest.fixture
def read(monkeypatch):
    """The names of the files whose content is read again."""
    names, content = [], unchanged.content

    def noted(path: Path) -> str | None:
        names.append(path.name)
        return content(path)

    monkeypatch.setattr("vlmexp.data.unchanged.content", noted)
    return names


def recolour(path: Path, keep_time: bool) -> None:
    """Change pixels in place, with the same size."""
    before = path.stat()
    with path.open("r+b") as file:
        file.seek(100)
        file.write(b"\xff" * 90)
    assert path.stat().st_size == before.st_size
    if keep_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_stored_image_that_is_changed_in_place_is_made_anew(make, keep_time, read, caplog):
    first = make()
    image = sorted((first.folder / "media").iterdir())[1]
    pixels = load_image(image).tobytes()
    recolour(image, keep_time)
    assert load_image(image).tobytes() != pixels
    with caplog.at_level(logging.WARNING):
        again = make()
    assert f"again from the source (what was noticed: media/{image.name})" in caplog.text
    assert "change their source" in caplog.text
    assert load_image(image).tobytes() == pixels
    assert again.fingerprint == first.fingerprint
    assert set(read) == {image.name}, "nothing is read but what was touched"


@pytest.mark.parametrize("keep_time", [False, True])
def test_a_referenced_image_that_is_changed_in_place_makes_other_data(make, keep_time, tmp_path):
    first = make()
    recolour(tmp_path / "source" / "6.bmp", keep_time)
    assert make().fingerprint != first.fingerprint


def test_untouched_data_are_not_read_again(make, read):
    make()
    make()
    assert read == []


@pytest.mark.parametrize("copy", [shutil.copy, shutil.copy2], ids=["new times", "times kept"])
def test_a_copy_is_read_once_and_is_as_good(make, copy, read, tmp_path, caplog):
    first = make()
    copied = tmp_path / "elsewhere" / first.folder.name
    shutil.copytree(first.folder, copied, copy_function=copy)
    shutil.rmtree(first.folder)
    for _ in range(2):
        assert make(tmp_path / "elsewhere") == Prepared(copied, first.manifest)
    assert sorted(read) == sorted(path.name for path in (copied / "media").iterdir())
    assert caplog.text == ""


def test_data_of_before_are_read_once(make, read):
    first = make()
    (first.folder / "stamps.json").unlink()
    assert make() == make() == first
    assert len(read) == 8


def test_where_nothing_can_be_written_each_process_reads_a_copy_once(make, read, monkeypatch):
    first = make()
    (first.folder / "stamps.json").unlink()

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "replace", refuse)
    assert make() == make() == first
    assert len(read) == 8
    assert not list(first.folder.glob(".looks*"))
