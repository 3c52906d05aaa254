"""A training that keeps the features of its pictures: step for step the one that does not."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.training.watched import watching
from vlmexp.collator import media
from vlmexp.evaluation.stage import eval_base, eval_finetuned
from vlmexp.evaluation.suite import BASE, FINETUNED
from vlmexp.files import read_json, read_jsonl
from vlmexp.interruption import Preempted
from vlmexp.models import encoders
from vlmexp.runs import Run
from vlmexp.training.stage import train_model
from vlmexp.training.trainer import VlmTrainer

TEXT_ONLY = (
    "peft.train_parts=[language]", "train.num_train_epochs=2", "train.eval_generation_examples=4",
    "evaluation.blind=none", "train.gradient_accumulation_steps=1", "train.memory_preflight=false",
)  # fmt: skip


def train_in(config: Any, directory: Path) -> dict[str, Any]:
    with Run.open(directory, config, []) as run:
        train_model(config, run)
    record: dict[str, Any] = read_json(directory / "run.json")
    return record


def trained(config: Any, directory: Path, last_step: int | None = None) -> dict[str, Any]:
    """The record of a training, which may be stopped behind a step."""
    with contextlib.suppress(Preempted), Run.open(directory, config, []) as run, watching(run, last_step):
        train_model(config, run)
    record: dict[str, Any] = read_json(directory / "run.json")
    return record


def numbers(directory: Path) -> list[tuple[int, Any, Any, Any]]:
    """Step, loss or loss of an evaluation, and the score of its answers."""
    lines = read_jsonl(directory / "metrics.jsonl")
    return [(line["step"], line.get("loss"), line.get("eval_loss"), line.get("eval_vqa_accuracy")) for line in lines]


def same(one: Path, other: Path) -> None:
    for mine, theirs in zip(numbers(one), numbers(other), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6)


@pytest.fixture
def passes(monkeypatch) -> list[int]:
    """How many pictures each pass of the tower sees."""
    seen: list[int] = []
    encode = encoders.Encoder.encode

    def counted(self: Any, inputs: Any) -> Any:
        seen.append(len(inputs["image_grid_thw"]))
        return encode(self, inputs)

    monkeypatch.setattr(encoders.Encoder, "encode", counted)
    return seen


@pytest.mark.slow
def test_the_same_steps_without_a_look_at_a_picture(small, tmp_path, monkeypatch, passes):
    plain = trained(small(*TEXT_ONLY, "train.cache_vision_features=off"), tmp_path / "plain")
    assert plain["vision_features"]["train"] == {"used": False, "reason": "train.cache_vision_features=off"}
    assert not passes
    looks: list[Path] = []
    load = media.load_image
    monkeypatch.setattr(media, "load_image", lambda path, options: (looks.append(path), load(path, options))[1])
    config = small(*TEXT_ONLY)
    record = trained(config, tmp_path / "kept")
    about = record["vision_features"]["train"]
    assert about["used"]
    assert about["pictures"] == 24  # 20 to train with and 4 to validate with, each under two questions
    same(tmp_path / "plain", tmp_path / "kept")
    count = len(list((Path(config.paths.data) / "vision_features").rglob("*.safetensors")))
    assert count == 24

    # A training that was stopped goes on after the features are gone, in its middle and at its start.
    trained(config, tmp_path / "cut", last_step=7)
    shutil.rmtree(about["folder"])
    assert trained(config, tmp_path / "cut")["vision_features"]["train"]["computed"] > 0
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "kept")

    config = small(*TEXT_ONLY, "train.cache_vision_features=on", "evaluation.metrics=[exact_match]")
    config.run, config.stage = str(tmp_path / "kept"), "eval_finetuned"
    with Run.open(tmp_path / "evaluation", config, []) as run:
        eval_finetuned(config, run)
        assert run.record["vision_features"][FINETUNED]["folder"] == about["folder"]
        assert run.record["sharing"]["share_images"]

    # The base model has the same tower, and answers as it does to pixels.
    answers = []
    for value in ("on", "off"):
        config = small(f"train.cache_vision_features={value}", "evaluation.metrics=[exact_match]")
        config.stage = "eval_base"
        with Run.open(tmp_path / f"base-{value}", config, []) as run:
            eval_base(config, run)
            found = run.record["vision_features"][BASE]
        assert (found["used"], found.get("folder")) == (value == "on", about["folder"] if value == "on" else None)
        answers.append((tmp_path / f"base-{value}" / "evaluation" / f"{BASE}_predictions.jsonl").read_bytes())
    assert answers[0] == answers[1]


@pytest.mark.slow
def test_features_that_vanish_are_computed_at_each_step(small, tmp_path, monkeypatch):
    options = ["peft.train_parts=[language]", "train.eval_strategy=no", "train.num_train_epochs=1"]
    options += ["collator.share_images=never"]  # each picture is looked at twice
    config = small(*options)
    train_in(small(*options, "train.cache_vision_features=off"), tmp_path / "plain")
    folder, step = Path(config.paths.data) / "vision_features", VlmTrainer.training_step

    def removing(self: Any, *given: Any, **named: Any) -> Any:
        assert folder.exists() is (self.state.global_step < 3)
        if self.state.global_step >= 2:
            shutil.rmtree(folder, ignore_errors=True)
        return step(self, *given, **named)

    monkeypatch.setattr(VlmTrainer, "training_step", removing)
    assert train_in(config, tmp_path / "kept")["vision_features"]["train"]["used"]
    same(tmp_path / "plain", tmp_path / "kept")
