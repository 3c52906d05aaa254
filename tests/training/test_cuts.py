"""How a step is cut into batches: what is tried, in which order, and that it changes nothing that is learned."""

from __future__ import annotations

import pytest
import torch

from tests.training.test_train import run_training
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl
from vlmexp.training.cuts import Cut, first_cut, smaller_cut
from vlmexp.training.divergence import StepWatch
from vlmexp.training.preflight import EVAL_SIZE, TRAIN_SIZE, TRAIN_TOKENS, TooLarge
from vlmexp.training.trainer import VlmTrainer

GIVEN = Cut(8, 2, checkpointing=True)


@pytest.mark.parametrize(
    ("whole_batches", "begun", "cut"),
    [
        (False, None, Cut(16, 1, False)),
        (True, None, Cut(8, 2, False)),
        (False, {"batch_size": 4, "gradient_checkpointing": True}, Cut(4, 4, True)),
        (
            False,
            {"batch_size": 12, "gradient_checkpointing": False},
            Cut(8, 2, False),
        ),  # of others
        (False, {"batch_size": 64, "gradient_checkpointing": False}, Cut(16, 1, False)),
        (True, {"batch_size": 8, "gradient_checkpointing": True}, Cut(8, 2, True)),
    ],
)
def test_what_is_tried_first(whole_batches, begun, cut):
    assert first_cut(GIVEN, whole_batches, begun) == cut


@pytest.mark.parametrize(
    ("tried", "option", "fits", "whole_batches", "cut"),
    [
        (Cut(16, 1, False), TRAIN_SIZE, 4, False, Cut(4, 4, False)),
        (Cut(16, 1, False), TRAIN_SIZE, 0, False, Cut(16, 1, True)),
        (Cut(4, 4, False), TRAIN_SIZE, 0, False, Cut(16, 1, True)),
        (Cut(16, 1, True), TRAIN_SIZE, 8, False, Cut(8, 2, True)),
        (Cut(16, 1, True), TRAIN_SIZE, 0, False, None),
        (Cut(8, 2, False), TRAIN_SIZE, 4, True, Cut(8, 2, True)),
        (Cut(8, 2, True), TRAIN_SIZE, 4, True, None),
        (Cut(8, 2, False), TRAIN_TOKENS, 5, True, Cut(8, 2, True)),
        (Cut(16, 1, True), EVAL_SIZE, 5, False, None),
    ],
)
def test_what_is_tried_next(tried, option, fits, whole_batches, cut):
    assert smaller_cut(tried, TooLarge("", option, fits, can_checkpoint=True), GIVEN, whole_batches) == cut


def test_checkpointing_is_tried_only_where_it_may_and_can_be():
    nothing = TooLarge("", TRAIN_SIZE, 0, can_checkpoint=True)
    assert smaller_cut(Cut(16, 1, False), nothing, Cut(8, 2, checkpointing=False), False) is None
    assert smaller_cut(Cut(16, 1, False), TooLarge("", TRAIN_SIZE, 0, can_checkpoint=False), GIVEN, False) is None


@pytest.fixture
def steps(small, tmp_path, monkeypatch):
    """Train with `train.fit`, where memory is refused as a function says: run.json, losses, steps' examples."""
    seen: list[list[str]] = []
    begin = StepWatch.begin

    def noted(self, ids):
        seen.append(sorted(name for batch in ids for name in batch))
        begin(self, ids)

    monkeypatch.setattr(StepWatch, "begin", noted)

    def train(fit: str, *options: str, refuses=lambda rows, checkpointing: False):
        rehearse = VlmTrainer.rehearse

        def limited(self, batch):
            if refuses(len(batch["input_ids"]), self.args.activation_checkpointing):
                raise torch.OutOfMemoryError
            rehearse(self, batch)

        seen.clear()
        config = small(
            f"train.fit={fit}", "peft.lora_dropout=0", "collator.share_images=never", "train.max_steps=4",
            "train.gradient_accumulation_steps=2", "train.gradient_checkpointing=true", "train.learning_rate=1e-3",
            *options,
        )  # fmt: skip
        directory = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        with monkeypatch.context() as patch:
            patch.setattr(VlmTrainer, "rehearse", limited)
            run_training(config, directory)
        losses = [row["loss"] for row in read_jsonl(directory / "metrics.jsonl") if "loss" in row]
        return read_json(directory / "run.json"), losses, [step for step in seen if step]

    return train


def test_the_steps_are_the_same_however_they_are_cut(steps):
    given, losses, ids = steps("none")
    assert "fit" not in given
    whole, *same = steps("auto")
    assert whole["fit"] == {"batch_size": 8, "accumulation": 1, "gradient_checkpointing": False}
    assert same == [pytest.approx(losses, rel=1e-5), ids]
    pieces, *same = steps("auto", refuses=lambda rows, _: rows > 2)
    assert pieces["fit"] == {"batch_size": 2, "accumulation": 4, "gradient_checkpointing": False}
    assert same == [pytest.approx(losses, rel=1e-5), ids]
    twice, *same = steps("auto", refuses=lambda rows, checkpointing: not checkpointing)
    assert twice["fit"] == {"batch_size": 8, "accumulation": 1, "gradient_checkpointing": True}
    assert same == [pytest.approx(losses, rel=1e-5), ids]


@pytest.mark.parametrize("fit", ["auto", "none"])
def test_memory_that_runs_out_in_a_step(steps, small, tmp_path, monkeypatch, fit):
    """With `auto` the training goes on from its checkpoint in smaller batches, to the same end."""
    _, losses, _ = steps("none")
    step, ran_out = VlmTrainer.training_step, []

    def limited(self, model, inputs, *arguments, **options):
        if self.state.global_step == 3 and not ran_out:
            ran_out.append(len(inputs["input_ids"]))
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory")
        return step(self, model, inputs, *arguments, **options)

    monkeypatch.setattr(VlmTrainer, "training_step", limited)
    if fit == "none":
        with pytest.raises(UserError, match=r"Memory ran out in a step with batches of 4 examples: continue with a sm"):
            steps(fit)
        return
    record, *_ = steps(fit)
    assert record["fit"] == {"batch_size": 4, "accumulation": 2, "gradient_checkpointing": False}
    assert any("the training goes on from its last checkpoint with 4." in said for said in record["fallbacks"])
    assert record["stages"]["train"]["resumed_from"] == "checkpoint-3"
    assert record["stages"]["train"]["loss"] == pytest.approx(losses[-1], rel=1e-5)


def test_what_never_fits_ends_in_the_advice(steps):
    with pytest.raises(UserError, match=r"per_device_train_batch_size=8 does not fit into memory.*Not even one"):
        steps("auto", refuses=lambda rows, checkpointing: True)
