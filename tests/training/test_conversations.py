"""Conversations through the whole line: evaluated on their last turn, trained on every turn, images made to fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlmexp.evaluation.stage import eval_base
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.training.stage import train


@pytest.fixture
def talks(tmp_path: Path) -> Path:
    """Eight conversations about two coloured squares each, one of them large."""
    rows = []
    for number in range(8):
        images = []
        for place, color in enumerate(("red", "blue")):
            side = 256 if (number, place) == (3, 1) else 32
            images.append(f"{number}-{color}.png")
            Image.new("RGB", (side, side), color).save(tmp_path / images[-1])
        turns = [
            {"from": "human", "value": "<image>\nwhat color is it?"},
            {"from": "gpt", "value": "red"},
            {"from": "human", "value": "and this?\n<image>"},
            {"from": "gpt", "value": "blue"},
        ]
        rows.append({"image": images, "conversations": turns})
    for split in ("train", "test"):
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    return tmp_path


def test_conversations_are_trained_and_evaluated(talks, compose, tmp_path):
    config = compose(
        "stage=train", "dataset=conversations", "collator=chat", "collator.overlong=shrink_image", "train=smoke",
        *(f"dataset.options.{split}={talks / split}.json" for split in ("train", "test")),
        "dataset.validation_fraction=0.2", "collator.max_length=60", "dataset.metrics=[exact_match]",
        "dataset.max_new_tokens=2", "export.parity_examples=2",
    )  # fmt: skip
    with Run.open(tmp_path / "run", config, []) as run:
        eval_base(config, run)
        train(config, run)
    record = read_json(tmp_path / "run" / "run.json")
    about = record["data"]["splits"]
    assert record["stages"]["train"]["steps"] == 4
    assert record["data"]["share_images"] is False
    assert sum(split["shrunk"] for split in about.values()) == 1
    assert max(split["longest_tokens"] for split in about.values()) <= 60
    result = read_json(tmp_path / "run" / "evaluation" / "base_vlm_model_evaluation.json")
    assert (result["n"], result["shrunk"], result["shortened"]) == (8, 1, 0)
    (first, *_) = read_jsonl(tmp_path / "run" / "evaluation" / "base_vlm_model_predictions.jsonl")
    assert (first["question"], first["answers"], len(first["images"])) == ("and this?", ["blue"], 2)
