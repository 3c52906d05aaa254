"""A model learns to answer questions about three real clips, from the prepared data to the scores."""

from __future__ import annotations

import json

import pytest

from tests.data.clips import clip
from vlmexp.evaluation.stage import eval_finetuned
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.training.stage import train

QUESTIONS = {
    "bikes": {"is this a street?": "yes", "what is shown?": "bicycle", "is it a car?": "no"},
    "bigbuckbunny": {"is this a street?": "no", "what is shown?": "tree", "is it a car?": "no"},
    "carphone_pristine": {"is this a street?": "no", "what is shown?": "man", "is it a car?": "yes"},
}


@pytest.mark.slow
def test_questions_about_videos_are_learnt(compose, tmp_path):
    rows = [
        {"clip": str(clip(name)), "query": query, "response": response}
        for name, answers in QUESTIONS.items()
        for query, response in answers.items()
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = compose(
        "dataset=files", *(f"dataset.options.{split}={tmp_path / split}.jsonl" for split in ("train", "test")),
        "dataset.splits.validation=null", "dataset.validation_fraction=0", "threads=1", "collator=video",
        "dataset.columns={image: null, video: clip, question: query, answer: response}", "evaluation.blind=shuffle",
        "collator.image_processing.max_size=32",
        "collator.video_processing.frame_extraction.num_frames=16",
        "train.per_device_train_batch_size=9", "train.gradient_accumulation_steps=1", "train.max_steps=24",
        "train.learning_rate=5e-3", "train.eval_strategy=no", "train.save_steps=24", "train.logging_steps=1",
        "train.lr_scheduler_type=constant", "train.gradient_checkpointing=false",
    )  # fmt: skip
    with Run.open(tmp_path / "run", config, []) as run:
        train(config, run)
        eval_finetuned(config, run)
    record = read_json(tmp_path / "run" / "run.json")
    assert record["data"]["video_library"] in ("pyav", "torchcodec", "decord", "cv2")
    assert record["data"]["share_images"] is True
    losses = [row["loss"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl") if "loss" in row]
    assert losses[-1] < 0.2 * losses[0]
    scores = read_json(tmp_path / "run" / "evaluation" / "finetuned_vlm_model_evaluation.json")
    assert scores["metrics"]["exact_match"] > 0.7
    assert scores["blind"]["metrics"]["exact_match"] < scores["metrics"]["exact_match"]  # it looks at the clip
    first = read_jsonl(tmp_path / "run" / "evaluation" / "finetuned_vlm_model_predictions.jsonl")[0]
    assert first["videos"] == [str(clip("bikes"))]
