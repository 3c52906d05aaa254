"""Metrics of answers during training: they are the evaluation's, choose the best model and disturb nothing."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.training.test_train import losses, weights
from vlmexp.errors import UserError
from vlmexp.evaluation.lookup import metric_names
from vlmexp.evaluation.stage import eval_finetuned
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.training.best import answered_examples, evaluations_since_best
from vlmexp.training.stage import check_training, train_model

FINGERPRINT = "evaluation.metrics=[tests.training.test_answers.fingerprint,rouge]"
EVERY_FOUR = ["train.max_steps=16", "train.learning_rate=5e-3", "train.eval_steps=4", "train.save_steps=4"]


def fingerprint(prediction: str, answers: Sequence[str]) -> float:
    """A metric in [0, 1] that differs between any two models, however little they have learned."""
    return zlib.crc32(prediction.encode()) / 2**32


def run_training(config, directory: Path) -> dict:
    """What stage=train does before its export; the result of the training."""
    with Run.open(directory, config, []) as run:
        check_training(config)
        train_model(config, run)
    return read_json(directory / "run.json")["stages"]["train"]


def answers(directory: Path) -> list[dict]:
    rows = [row for row in read_jsonl(directory / "metrics.jsonl") if "eval_loss" in row]
    return [{name: value for name, value in row.items() if name.startswith("eval_")} for row in rows]


def cut_after(step: int, whole: Path, cut: Path) -> None:
    """As a kill after a step would have left it: no later checkpoint and no model, but lines of later steps."""
    shutil.copytree(whole, cut)
    for path in cut.glob("checkpoints/checkpoint-*"):
        if int(path.name.rpartition("-")[2]) > step:
            shutil.rmtree(path)
    shutil.rmtree(cut / "model")
    record = read_json(cut / "run.json")
    record["stages"]["train"]["status"] = record["status"] = "running"
    (cut / "run.json").write_text(json.dumps(record))


@pytest.mark.parametrize(
    ("peft", "options"),
    [
        ("lora", ["collator.share_images=auto"]),
        ("lora", ["train.gradient_checkpointing=true", "+evaluation.generation.do_sample=true"]),
        ("none", ["train.gradient_checkpointing=true"]),
    ],
)
def test_the_training_is_bit_for_bit_the_same(small, tmp_path, peft, options):
    for name, count in (("with", 5), ("without", 0)):
        config = small("train.max_steps=4", "train.eval_steps=2", f"train.eval_generation_examples={count}", *options)
        if peft == "none":
            config.peft = {"config_class": None}
        run_training(config, tmp_path / name)
    assert [row.get("eval_n") for row in answers(tmp_path / "with")] == [5, 5]
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    assert weights(tmp_path / "with") == weights(tmp_path / "without")


def test_the_scores_are_those_of_the_evaluation(small, tmp_path):
    """All of the validation split, asked during training and by a stage of its own."""
    config = small(
        "train.max_steps=1", "train.eval_generation_examples=1000", "evaluation.split=validation", FINGERPRINT
    )  # fmt: skip
    stage = run_training(config, tmp_path / "run")
    last = answers(tmp_path / "run")[-1]
    config = dataclasses.replace(config, run=str(tmp_path / "run"))
    config.evaluation.blind = "none"
    with Run.open(tmp_path / "evaluation", config, []) as run:
        eval_finetuned(config, run)
    result = read_json(tmp_path / "evaluation" / "evaluation" / "finetuned_vlm_model_evaluation.json")
    assert result["metrics"].pop("rouge2") is None  # of one word has no value, and is not logged
    counts = {"n": result["n"], "cut": result["cut"]}
    assert {f"eval_{name}": value for name, value in (result["metrics"] | counts).items()} == {
        name: value for name, value in last.items() if name != "eval_loss"
    }
    assert stage["eval_answers"] == {**counts, "metrics": result["metrics"]}
    assert result["metrics"]["fingerprint"] > 0


def test_the_best_checkpoint_is_the_model_also_after_a_kill(small, tmp_path):
    config = small(*EVERY_FOUR, FINGERPRINT, "train.metric_for_best_model=eval_fingerprint")
    config.train["save_total_limit"] = 20
    whole = tmp_path / "whole"
    stage = run_training(config, whole)
    values = [row["eval_fingerprint"] for row in answers(whole)]
    assert len(set(values)) > 1
    best = 4 * (values.index(max(values)) + 1)
    assert (stage["best_checkpoint"], stage["best_metric"]) == (f"checkpoint-{best}", max(values))
    saved = whole / "checkpoints" / f"checkpoint-{best}" / "adapter_model.safetensors"
    assert weights(whole) == saved.read_bytes()

    cut_after(8, whole, tmp_path / "cut")
    again = run_training(config, tmp_path / "cut")
    assert again["resumed_from"] == "checkpoint-8"
    assert {name: again[name] for name in ("best_checkpoint", "best_metric", "eval_answers")} == {
        name: stage[name] for name in ("best_checkpoint", "best_metric", "eval_answers")
    }
    assert answers(tmp_path / "cut") == answers(whole)
    assert weights(tmp_path / "cut") == weights(whole)


def test_training_ends_when_nothing_gets_better_also_after_a_kill(small, tmp_path):
    """A learning rate of 0 changes nothing: the first evaluation stays the best."""
    config = small("train.learning_rate=0", "train.early_stopping_patience=2", "train.save_total_limit=20")
    whole = tmp_path / "whole"
    assert run_training(config, whole)["steps"] == 9
    for step, name in ((6, "before"), (9, "after")):  # the step at which it ended
        cut_after(step, whole, tmp_path / name)
        again = run_training(config, tmp_path / name)
        assert (again["steps"], again["resumed_from"]) == (9, f"checkpoint-{step}")
        assert losses(tmp_path / name) == losses(whole)


def test_the_best_checkpoint_outlives_newer_ones(small, tmp_path):
    config = small(
        "train.learning_rate=0", "train.metric_for_best_model=exact_match",
        "train.save_total_limit=1", "train.max_steps=9",
    )  # fmt: skip
    stage = run_training(config, tmp_path / "run")
    assert stage["best_checkpoint"] == "checkpoint-3"
    assert (tmp_path / "run" / "checkpoints" / "checkpoint-3").is_dir()
    assert stage["steps"] == 9


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.metric_for_best_model=vqa_acuracy"], r"did you mean 'vqa_accuracy'\? There are: bleu, .*loss.*rouge1"),
        (["train.metric_for_best_model=anls"], "'anls' does not exist"),
        (["train.metric_for_best_model=bleu", "train.eval_generation_examples=0"], "eval_generation_examples=0"),
        (
            ["train.metric_for_best_model=bleu", "train.load_best_model_at_end=true", "train.save_steps=4"],
            "train.save_steps=4 must be a multiple of train.eval_steps=3",
        ),
        (["train.eval_strategy=no", "train.metric_for_best_model=bleu"], "train.eval_strategy=steps"),
        (["train.eval_strategy=no", "train.early_stopping_patience=3"], "train.eval_strategy=steps"),
        (
            ["train.metric_for_best_model=loss", "train.save_steps=0.1"],
            r"save_steps=0\.1 must be a multiple of .*steps=3",
        ),
        (
            ["train.metric_for_best_model=loss", "train.eval_steps=2", "train.save_steps=3"],
            "save_steps=3 must be a mul",
        ),
        (["train.load_best_model_at_end=true", "train.save_strategy=epoch"], "save_strategy=epoch and train.eval_str"),
        (["evaluation.answers=rank", "evaluation.choices=[yes,'']"], "evaluation.choices='' is empty"),
        (["train.metric_for_best_model=bleu"], "metric_for_best_model=bleu has no value here: .* too few words"),
        (["train.metric_for_best_model=rouge2", "train.eval_generation_examples=3"], "rouge2 has no value here"),
        (["train.early_stopping_patience=0"], "early_stopping_patience=0 must be at least 1"),
        (["train.eval_generation_examples=-1"], "eval_generation_examples=-1 must be at least 0"),
        (["dataset.validation_fraction=0", "train.eval_generation_examples=9"], "dataset.validation_fraction above 0"),
    ],
)
def test_what_nothing_could_measure_is_refused_before_weights_are_read(small, tmp_path, overrides, message):
    with pytest.raises(UserError, match=message):
        run_training(small(*overrides), tmp_path / "run")
    record = tmp_path / "run" / "run.json"
    assert not record.exists() or "model" not in read_json(record)


@pytest.mark.parametrize(
    ("wanted", "given", "examples"),
    [(None, None, 0), (None, 7, 7), ("loss", None, 0), ("eval_loss", 3, 3), ("bleu", None, 200), ("eval_bleu", 5, 5)],
)
def test_how_many_questions_are_answered(wanted, given, examples):
    assert answered_examples(wanted, ["bleu"], given) == examples


def test_names_of_metrics():
    own = ["vlmexp.evaluation.qa.anls", "vlmexp.evaluation.metrics.rouge"]
    rouge = ["rouge1", "rouge2", "rougeL"]
    assert metric_names(["cider", "bleu", "vqa_accuracy", *own]) == ["cider", "bleu", "vqa_accuracy", "anls", *rouge]
    assert metric_names(["rouge", "bleu"]) == [*rouge, "bleu"]


@pytest.mark.parametrize(
    ("values", "greater", "since"),
    [
        ([1.0], True, 0),
        ([1, 3, 2, 3], True, 2),
        ([3, 1, 2], False, 1),
        ([1, 1, 1], False, 2),
        ([float("nan"), 1, 2], True, 0),
    ],
)
def test_evaluations_since_the_best(values, greater, since):
    assert evaluations_since_best(values, greater) == since
