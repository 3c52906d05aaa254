"""Examples that are too long and examples that the processor refuses, from the first evaluation to the last one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from vlmexp.errors import UserError
from vlmexp.evaluation.stage import eval_base, eval_finetuned
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.training.stage import train

ROWS, TALL, LARGE = 20, 3, 5
COLUMNS = {
    "vqa": ["dataset=files", "dataset.columns={image: image, question: question, answer: answer}"],
    "chat": ["dataset=conversations", "collator=chat", "dataset.columns.messages=turns"],
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """Twenty questions about ten images; of one image nothing is left in one dimension, and one is 256 tokens."""
    sizes = {TALL: (1, 4000), LARGE: (256, 256)}
    for number in range(ROWS // 2):
        Image.new("RGB", sizes.get(number, (64, 32)), "red").save(tmp_path / f"{number}.png")
    rows = [
        {
            "id": f"{number // 2}",  # as the image's
            "image": f"{number // 2}.png",
            "question": (question := f"what color is it? ({number})"),
            "answer": "red",
            "turns": [{"role": "user", "content": question}, {"role": "assistant", "content": "red"}],
        }
        for number in range(ROWS)
    ]
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("form", COLUMNS)
def test_they_are_counted_and_listed_and_end_nothing(form, files, compose, tmp_path):
    config = compose(
        "stage=train", *COLUMNS[form], "train=smoke", "threads=1",
        *(f"dataset.options.{split}={files / split}.jsonl" for split in ("train", "validation", "test")),
        "dataset.splits={train: train, validation: validation, test: test}", "dataset.on_bad_sample=skip",
        "dataset.max_bad_share=0.1", "collator.overlong=drop", "collator.max_length=100",
        "train.train_sampling_strategy=group_by_length", "train.tokens_per_batch=200",
        "train.eval_generation_examples=20", "dataset.metrics=[exact_match]", "dataset.max_new_tokens=2",
        "evaluation.blind=none", "evaluation.invariance_examples=0", "export.parity_examples=2",
    )  # fmt: skip
    with Run.open(tmp_path / "run", config, []) as run:
        eval_base(config, run)
        train(config, run)
        eval_finetuned(config, run)
    record = read_json(tmp_path / "run" / "run.json")
    for split in ("train", "validation"):
        about = record["data"]["splits"][split]
        assert (about["examples"], about["dropped"], about["refused"]) == (16, 2, 2)
        assert about["longest_tokens"] <= 100
    assert record["data"]["share_images"] is (form == "vqa")
    assert record["stages"]["train"]["eval_answers"]["n"] == 18
    listed = [(row["split"], row["id"]) for row in read_jsonl(tmp_path / "run" / "left_out.jsonl")]
    ids = ["5", "5-2", "3", "3-2"]
    assert listed == [(split, id) for split in ("train", "validation") for id in ids]
    for name in ("base_vlm_model", "finetuned_vlm_model"):
        result = read_json(tmp_path / "run" / "evaluation" / f"{name}_evaluation.json")
        assert (result["n"], result["refused"], result["too_long"], result["shortened"]) == (18, 2, 2, 0)
        predictions = read_jsonl(tmp_path / "run" / "evaluation" / f"{name}_predictions.jsonl")
        assert len({row["id"] for row in predictions}) == 18
        assert {"5", "5-2"} < {row["id"] for row in predictions}


def test_a_split_of_which_nothing_is_left(files, compose, tmp_path):
    (files / "validation.jsonl").write_text((files / "train.jsonl").read_text().splitlines()[2 * LARGE])
    config = compose(
        "stage=train", *COLUMNS["vqa"], "train=smoke", "collator.overlong=drop", "collator.max_length=100",
        *(f"dataset.options.{split}={files / split}.jsonl" for split in ("train", "validation")),
        "dataset.splits={train: train, validation: validation, test: null}", "dataset.test_fraction=0",
        "dataset.on_bad_sample=skip", "dataset.max_bad_share=0.1",
    )  # fmt: skip
    message = r"No example of the validation split is left: raise collator\.max_length\."
    with Run.open(tmp_path / "run", config, []) as run, pytest.raises(UserError, match=message):
        train(config, run)
