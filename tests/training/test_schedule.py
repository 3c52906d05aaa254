"""Trainings of too few steps: refused where there is none, and said before they begin."""

from __future__ import annotations

import pytest

from tests.training.test_divergence import run_training
from vlmexp.errors import UserError
from vlmexp.files import read_json
from vlmexp.pipeline import pipeline
from vlmexp.runs import Run
from vlmexp.training import stage


def test_no_step_is_an_error_before_the_model_is_loaded(small, tmp_path, monkeypatch):
    monkeypatch.setattr(stage, "load_model", lambda *_: pytest.fail("loaded"))
    config = small("train.dataloader_drop_last=true", "train.per_device_train_batch_size=64")
    with pytest.raises(UserError, match=r"leaves no step to make: 38 training examples .*batch_size=64\. Lower it to"):
        run_training(config, tmp_path / "run")
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_no_step_is_an_error_before_the_base_model_is_evaluated(small, tmp_path):
    config = small("stage=pipeline", "train.dataloader_drop_last=true", "train.per_device_train_batch_size=64")
    with pytest.raises(UserError, match="leaves no step to make"), Run.open(tmp_path / "run", config, []) as run:
        pipeline(config, run)
    assert "eval_base" not in read_json(tmp_path / "run" / "run.json")["stages"]


@pytest.mark.parametrize(
    ("overrides", "steps", "said"),
    [
        (["train.per_device_train_batch_size=128", "train.num_train_epochs=1", "train.warmup_steps=0"], 1,
         ["This training has 1 step: 38 examples, 128 a step.", "train.eval_steps=3 are", "train.save_steps=3 are"]),
        (["train.max_steps=2", "train.warmup_steps=3", "train.eval_strategy=no"], 2,
         ["train.warmup_steps=3 are 3 of this training's 2 steps", "train.save_steps=3 are more than"]),
        (["train.max_steps=2", "train.warmup_steps=0", "train.eval_delay=5"], 2,
         ["train.eval_steps=3 are more than", "train.save_steps=3 are more than", "train.eval_delay=5 is never over"]),
        (["train.max_steps=3"], 3, []),
    ],
)  # fmt: skip
def test_what_does_not_come_to_pass_is_said(small, tmp_path, overrides, steps, said):
    record = run_training(
        small("train.memory_preflight=false", "train.gradient_audit=off", *overrides), tmp_path / "run"
    )
    notes = record["schedule"]["notes"]
    assert record["schedule"]["steps"] == record["stages"]["train"]["steps"] == steps
    assert [note.startswith(text) for note, text in zip(notes, said, strict=True)] == [True] * len(said)
    assert not notes or all(note in (tmp_path / "run" / "train.log").read_text() for note in notes)


def test_the_embedded_models_batch_on_ones_own_questions(compose):
    """128 is for easy-VQA's 38,575; fifty of one's own make a few dozen steps."""
    own = compose("dataset=files", "dataset.options.train=train.jsonl").train
    assert (own["per_device_train_batch_size"], own["gradient_accumulation_steps"], own["num_train_epochs"]) == (
        8,
        1,
        5,
    )
    assert own["learning_rate"] == compose().train["learning_rate"] == 2e-3
    assert compose().train["per_device_train_batch_size"] == 128
    assert compose().train["num_train_epochs"] == 0.75
