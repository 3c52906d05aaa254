"""Boxes in the columns of a data set."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from vlmexp.config import required_roles, used_columns
from vlmexp.data.boxes import boxes_in
from vlmexp.data.prepare import prepare
from vlmexp.data.stage import load_split
from vlmexp.files import read_jsonl


@pytest.mark.parametrize(
    ("value", "form", "boxes"),
    [
        ([10, 20, 30, 40], "xywh", [[10, 20, 40, 60]]),
        ([10, 20, 30, 40], "xyxy", [[10, 20, 30, 40]]),
        ([[1, 2, 3, 4], (5.5, 6, 7, 8)], "xywh", [[1, 2, 4, 6], [5.5, 6, 12.5, 14]]),
        ("[10, 20, 30, 40]", "xyxy", [[10, 20, 30, 40]]),
        (None, "xywh", []),
        ("", "xywh", []),
        ([], "xywh", []),
    ],
)
def test_boxes_are_read_in_their_form(value, form, boxes):
    assert boxes_in(value, form) == boxes


@pytest.mark.parametrize(
    "value", ["cat", "[1, 2", [1, 2, 3], [1, 2, 3, "x"], [1, 2, 3, float("nan")], {"x": 1}, 7, [[[1]]]]
)
def test_what_is_no_box(value):
    with pytest.raises(ValueError, match="is no box of four numbers"):
        boxes_in(value, "xywh")


def test_a_box_has_an_area():
    with pytest.raises(ValueError, match=r"\[10, 20, 5, 40\] has no area, read as dataset.box_form=xyxy"):
        boxes_in([10, 20, 5, 40], "xyxy")
    with pytest.raises(ValueError, match="has no area"):
        boxes_in([10, 20, 0, 40], "xywh")


def test_a_column_of_boxes_is_the_answer(tmp_path, compose):
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    rows = [
        {"image": "a.png", "question": "where?", "box": [1, 2, 30, 40]},
        {"image": "a.png", "question": "where?", "box": "[[1, 2, 3, 4], [5, 6, 7, 8]]"},
        {"image": "a.png", "question": "where?", "box": [9, 9, 0, 0]},
        {"image": "a.png", "question": "where?", "box": None},
        {"image": ["a.png", "a.png"], "question": "where?", "box": [1, 2, 30, 40]},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    train = f"dataset.options.train={tmp_path / 't.jsonl'}"
    config = compose("dataset=files", train, "dataset.columns.box=box", "dataset.metrics=[box_iou]")
    assert used_columns(config) == {"image": "image", "question": "question", "box": "box"}
    assert required_roles(config) == ["question", "box"]
    dataset = config.dataset
    prepared = prepare(
        tmp_path / "data", "boxes", "1", dataset.source, dataset.options, dataset.splits, 0.0, 0.0, 0,
        used_columns(config), required_roles(config), on_bad_sample="skip", max_bad_share=1.0, box_form="xywh",
    )  # fmt: skip
    one, two = load_split(config, prepared, "train")
    assert one.boxes == ((1, 2, 31, 42),)
    assert one.answers == ("[[1.0, 2.0, 31.0, 42.0]]",)
    assert two.boxes == ((1, 2, 4, 6), (5, 6, 12, 14))
    assert "box" not in one.fields
    reasons = [(line["id"], line["reason"]) for line in read_jsonl(prepared.folder / "bad.jsonl")]
    assert reasons == [("train-2", "no box"), ("train-3", "empty box"), ("train-4", "no image of the box")]
