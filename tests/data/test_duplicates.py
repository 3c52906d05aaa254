"""The same picture is the same picture, whatever its file is called and however it is encoded."""

from __future__ import annotations

import base64
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests.data.clips import drawn
from vlmexp.data.examples import Examples
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.errors import UserError
from vlmexp.files import read_jsonl

COLUMNS = {"image": "image", "question": "question", "answer": "answer"}
SPLITS = ("train", "validation", "test")


def picture(number: int, size: int = 64) -> Image.Image:
    """One of many pictures of which no two look alike."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 255, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((size, size), Image.Resampling.BICUBIC)


def row(image: object, question: str = "what is it?", answer: str = "a") -> dict:
    return {"image": image, "question": question, "answer": answer}


def write(folder: Path, **splits: list[dict]) -> dict[str, str]:
    """Write a file for each split; the options that name them."""
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    return {split: str(folder / f"{split}.jsonl") for split in splits}


def prepared(options: dict, data: Path, **changes) -> Prepared:
    arguments = {
        "data_dir": data, "name": "copies", "version": "1", "source": "files", "options": options,
        "splits": {split: split for split in SPLITS}, "validation_fraction": 0.0, "test_fraction": 0.0,
        "split_seed": 0, "columns": COLUMNS,
    }  # fmt: skip
    return prepare(**{**arguments, **changes})


def ids(data: Prepared, split: str, columns: dict = COLUMNS) -> list[str]:
    return Examples(data, split, columns).ids() if data.manifest["counts"][split] else []


def disguised(folder: Path, number: int) -> list[object]:
    """The same picture under five names, in four formats, once inside of the row and once lying on its side."""
    image = picture(number)
    names = [f"{number}.png", f"copy-{number}.png", f"{number}.bmp", f"{number}.tif"]
    for name in names:
        image.save(folder / name)
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # show it turned back by a quarter
    turned.save(folder / f"turned-{number}.png", exif=exif)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=True)
    inside = "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()
    return [*names, f"turned-{number}.png", inside]


def test_a_picture_under_six_names_is_in_one_split(tmp_path):
    """Of 12 pictures a quarter goes to each of the smaller splits, with all six rows of each."""
    files = [disguised(tmp_path, number) for number in range(12)]
    rows = [row(name) | {"id": f"{n}/{k}"} for k in range(6) for n, names in enumerate(files) for name in [names[k]]]
    data = prepared(
        write(tmp_path, train=rows), tmp_path / "data", splits={"train": "train"}, validation_fraction=0.25,
        test_fraction=0.25,
    )  # fmt: skip
    assert data.manifest["counts"] == {"train": 36, "validation": 18, "test": 18}
    pictures = {split: {name.partition("/")[0] for name in ids(data, split)} for split in SPLITS}
    assert {split: len(found) for split, found in pictures.items()} == {"train": 6, "validation": 3, "test": 3}
    assert set.union(*pictures.values()) == {str(number) for number in range(12)}
    assert data.manifest["duplicates"] == data.manifest["near_duplicates"] == {}


def test_rows_that_share_one_of_their_pictures_stay_together(tmp_path):
    """A chain: each row shows the next picture and a copy of the one before."""
    for number in range(5):
        picture(number).save(tmp_path / f"{number}.png")
        picture(number).save(tmp_path / f"copy-{number}.bmp")
    chain = [row([f"copy-{n}.bmp", f"{n + 1}.png"]) for n in range(4)]
    for number in range(5, 9):
        picture(number).save(tmp_path / f"{number}.png")
    others = [row(f"{number}.png") for number in range(5, 9)]
    for seed in range(6):
        data = prepared(
            write(tmp_path, train=[*chain, *others]), tmp_path / "data", splits={"train": "train"}, split_seed=seed,
            validation_fraction=0.4,
        )  # fmt: skip
        held_out = set(ids(data, "validation"))
        assert len(held_out & {f"train-{n}" for n in range(4)}) in (0, 4)
        assert len(held_out) in (2, 5)  # two of five groups


def test_a_split_depends_on_what_the_files_hold_and_not_on_where_they_lie(tmp_path):
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    rows = []
    for number in range(10):
        picture(number).save(there / f"{number}.png")
        rows.append(row(f"{number}.png"))
    options = write(there, train=rows)
    shutil.copytree(there, here)
    inside = [
        row("data:image/png;base64," + base64.b64encode((there / r["image"]).read_bytes()).decode()) for r in rows
    ]
    moved = {"train": str(here / "train.jsonl")}
    (tmp_path / "inside").mkdir()
    found = [
        ids(prepared(each, tmp_path / "data", splits={"train": "train"}, validation_fraction=0.3), "validation")
        for each in (options, moved, write(tmp_path / "inside", train=inside))
    ]
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 3


@pytest.fixture
def overlapping(tmp_path) -> dict[str, str]:
    """Three test rows about pictures of train, one of them with its question, and one about a validation picture."""
    for number in range(8):
        picture(number).save(tmp_path / f"{number}.png")
    for number, name in ((0, "zero.bmp"), (1, "one.tif"), (5, "five.png")):
        picture(number).save(tmp_path / name)
    return write(
        tmp_path,
        train=[row(f"{number}.png", f"{number}?") for number in range(4)],
        validation=[row("4.png"), row("5.png")],
        test=[row("zero.bmp", "0?"), row("zero.bmp", "new?"), row(["7.png", "one.tif"]), row("five.png"), row("6.png")],
    )


def test_pictures_of_two_given_splits_are_counted_and_named(overlapping, tmp_path):
    data = prepared(overlapping, tmp_path / "data")
    assert data.manifest["counts"] == {"train": 4, "validation": 2, "test": 5}
    assert data.manifest["duplicates"] == {
        "test": {"train": {"rows": 3, "same_question": 1}, "validation": {"rows": 1, "same_question": 1}}
    }
    listed = read_jsonl(data.folder / "duplicates.jsonl")
    assert [(line["id"], line["other_split"], line["other_id"], line["same_question"]) for line in listed] == [
        ("test-0", "train", "train-0", True), ("test-1", "train", "train-0", False),
        ("test-2", "train", "train-1", False), ("test-3", "validation", "validation-1", True),
    ]  # fmt: skip
    assert listed[2]["path"] == str(tmp_path / "one.tif")
    assert listed[2]["other_path"] == str(tmp_path / "1.png")


def test_duplicates_can_be_an_error(overlapping, tmp_path):
    message = (
        r"^copies: 3 of 5 test rows show what rows of train show; 1 of 5 test rows show what rows of validation show\. "
        r"The first is test-0, which shows the same as train-0 of train\. .*duplicates\.jsonl\. .*drop_from_train"
    )
    for _ in range(2):  # the second time from what is prepared
        with pytest.raises(UserError, match=message):
            prepared(overlapping, tmp_path / "data", on_duplicates="error")
    assert prepared(overlapping, tmp_path / "data").manifest["counts"]["test"] == 5


def test_duplicates_can_leave_the_train_split(overlapping, tmp_path):
    data = prepared(overlapping, tmp_path / "data", on_duplicates="drop_from_train")
    assert data.manifest["dropped_from_train"] == 2
    assert ids(data, "train") == ["train-2", "train-3"]
    assert len(ids(data, "test")) == 5
    assert data.manifest["duplicates"] == {"test": {"validation": {"rows": 1, "same_question": 1}}}
    listed = read_jsonl(data.folder / "duplicates.jsonl")
    assert [(line["split"], line["id"], line["other_id"]) for line in listed[:2]] == [
        ("train", "train-0", "test-0"), ("train", "train-1", "test-2"),
    ]  # fmt: skip
    assert data.folder != prepared(overlapping, tmp_path / "data").folder


def test_a_validation_split_is_taken_from_what_the_test_split_leaves(overlapping, tmp_path):
    options = {split: overlapping[split] for split in ("train", "test")}
    data = prepared(options, tmp_path / "data", on_duplicates="drop_from_train", validation_fraction=0.5)
    assert sorted(ids(data, "train") + ids(data, "validation")) == ["train-2", "train-3"]
    assert data.manifest["duplicates"] == {}


def test_one_file_for_two_splits_is_said(overlapping, tmp_path):
    data = prepared({**overlapping, "test": overlapping["train"]}, tmp_path / "data")
    assert data.manifest["duplicates"]["test"] == {"train": {"rows": 4, "same_question": 4}}
    with pytest.raises(UserError, match="drop_from_train leaves no row of the train split: all"):
        prepared({**overlapping, "test": overlapping["train"]}, tmp_path / "data", on_duplicates="drop_from_train")


def test_a_validation_split_is_looked_through_as_well(overlapping, tmp_path):
    data = prepared({"train": overlapping["train"], "validation": overlapping["test"]}, tmp_path / "data")
    assert data.manifest["duplicates"] == {"validation": {"train": {"rows": 3, "same_question": 1}}}


def test_rows_without_media_are_told_by_their_texts(tmp_path):
    train = [row(None, "two and two?", "4"), row(None, "one and one?", "2"), row(None, "one and one?", "two")]
    test = [row(None, "two and two?", "4"), row(None, "one and one?", "3")]
    data = prepared(write(tmp_path, train=train, test=test), tmp_path / "data")
    assert data.manifest["duplicates"] == {"test": {"train": {"rows": 1, "same_question": 1}}}
    assert data.manifest["without_media"] == {"train": 3, "test": 2}


def test_equal_texts_are_in_one_split(tmp_path):
    rows = [row(None, f"{number % 5}?") for number in range(20)]
    data = prepared(write(tmp_path, train=rows), tmp_path / "data", splits={"train": "train"}, validation_fraction=0.4)
    questions = [{e.fields["question"] for e in Examples(data, split, COLUMNS)} for split in ("train", "validation")]
    assert data.manifest["counts"] == {"train": 12, "validation": 8, "test": 0}
    assert not questions[0] & questions[1]


def test_videos_are_the_same_if_their_files_are(tmp_path):
    pytest.importorskip("av")
    first, second = (drawn(tmp_path / f"{name}.mp4", frames) for name, frames in (("first", 3), ("second", 4)))
    shutil.copy(first, tmp_path / "again.mp4")
    columns = {"video": "clip", "question": "question", "answer": "answer"}
    rows = {
        "train": [{"clip": str(first), "question": "q?", "answer": "a"}],
        "test": [{"clip": str(clip), "question": "q?", "answer": "a"} for clip in (tmp_path / "again.mp4", second)],
    }
    data = prepared(write(tmp_path, **rows), tmp_path / "data", columns=columns)
    assert data.manifest["duplicates"] == {"test": {"train": {"rows": 1, "same_question": 1}}}
    assert data.shown_kind == "videos"


def test_look_alikes_are_counted_and_left_alone(tmp_path):
    """Pictures saved with less quality and smaller; and shapes that differ in colour or place only are others."""
    for number in range(6):
        picture(number, 160).save(tmp_path / f"{number}.png")
    for number in range(4):
        picture(number, 160).resize((120, 120)).save(tmp_path / f"small-{number}.jpg", quality=70)
    for name, color, left in (("red", "red", 40), ("blue", "blue", 40), ("moved", "red", 70)):
        image = Image.new("RGB", (160, 160), "white")
        ImageDraw.Draw(image).rectangle([left, 40, left + 50, 90], fill=color)
        image.save(tmp_path / f"{name}.png")
    train = [row(f"{number}.png") for number in range(6)] + [row("red.png")]
    test = [row(f"small-{number}.jpg") for number in range(4)] + [row("blue.png"), row("moved.png"), row("5.png")]
    data = prepared(write(tmp_path, train=train, test=test), tmp_path / "data")
    assert data.manifest["duplicates"] == {"test": {"train": {"rows": 1, "same_question": 1}}}
    near = data.manifest["near_duplicates"]
    assert near["test"]["train"]["pictures"] == 4
    first, second = (Path(path).stem for path in near["test"]["train"]["example"])
    assert first == f"small-{second}"
    assert data.manifest["counts"] == {"train": 7, "validation": 0, "test": 7}


@pytest.mark.parametrize("name", ["duplicates.jsonl", "pictures.jsonl"])
def test_lists_that_are_gone_are_made_again(name, overlapping, tmp_path):
    first = prepared(overlapping, tmp_path / "data")
    before = (first.folder / name).read_text()
    (first.folder / name).unlink()
    assert prepared(overlapping, tmp_path / "data") == first
    assert (first.folder / name).read_text() == before
