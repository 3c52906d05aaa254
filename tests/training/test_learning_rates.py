"""Parts of the model with learning rates of their own."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from transformers import Trainer, TrainingArguments

from tests.training.test_train import losses, run_training, weights
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl
from vlmexp.models.adapter import attach
from vlmexp.models.modules import DEFAULT_PATTERNS
from vlmexp.training.learning_rates import require_parts
from vlmexp.training.trainer import VlmTrainer

RATES = {"vision": 1e-4, "projector": 5e-3}


def arguments(tmp_path, **options) -> TrainingArguments:
    return TrainingArguments(str(tmp_path), learning_rate=1e-3, weight_decay=0.1, report_to=[], **options)


def parameter_values(trainer: Trainer, model: torch.nn.Module, name: str) -> dict[str, float]:
    of = {parameter: group[name] for group in trainer.optimizer.param_groups for parameter in group["params"]}
    return {key: of[parameter] for key, parameter in model.named_parameters()}


@pytest.mark.parametrize(
    ("scheduler", "step", "factor"), [("linear", 2, 0.5), ("linear", 7, 0.5), ("constant_with_warmup", 3, 0.75)]
)
def test_every_parameter_has_the_rate_of_its_part(model, tmp_path, scheduler, step, factor):
    options = arguments(tmp_path, lr_scheduler_type=scheduler, warmup_steps=4)
    trainer = VlmTrainer(model, options, train_sampler=[], learning_rates=RATES)
    trainer.create_optimizer_and_scheduler(10)
    for _ in range(step):
        trainer.optimizer.step()
        trainer.lr_scheduler.step()
    rates = parameter_values(trainer, model, "lr")
    expected = {"vision": 1e-4 * factor, "projector": 5e-3 * factor, "language": 1e-3 * factor}
    assert rates == {name: pytest.approx(expected[DEFAULT_PATTERNS.part_of(name)], rel=1e-12) for name in rates}
    assert sum("visual" in name for name, rate in rates.items() if rate < 6e-4) > 20

    usual = Trainer(model, options)
    usual.create_optimizer()
    decay = parameter_values(trainer, model, "weight_decay")
    assert decay == parameter_values(usual, model, "weight_decay")
    assert set(decay.values()) == {0.0, 0.1}


def test_without_rates_the_optimizer_is_the_trainers_own(model, tmp_path):
    trainer = VlmTrainer(model, arguments(tmp_path), train_sampler=[])
    assert [set(group) & {"part"} for group in trainer.create_optimizer().param_groups] == [set(), set()]


def test_an_optimizer_that_was_made_elsewhere_is_refused(model, tmp_path):
    made = (torch.optim.AdamW(model.parameters()), None)
    trainer = VlmTrainer(model, arguments(tmp_path), train_sampler=[], learning_rates=RATES, optimizers=made)
    with pytest.raises(UserError, match="an optimizer that the training makes itself"):
        trainer.create_optimizer()


def test_a_training_logs_and_resumes_its_rates(small, tmp_path):
    config = small(
        "train.learning_rate=1e-3", "train.vision_learning_rate=1e-4", "train.projector_learning_rate=5e-3",
        "train.lr_scheduler_type=linear", "train.warmup_steps=2", "train.max_steps=6", "train.save_total_limit=20",
    )  # fmt: skip
    run_training(config, tmp_path / "whole")
    rows = [row for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl") if "loss" in row]
    factors = [0.0, 0.5, 1.0, 0.75, 0.5, 0.25]
    for name, rate in (("", 1e-3), ("_vision", 1e-4), ("_projector", 5e-3)):
        assert [row[f"learning_rate{name}"] for row in rows] == pytest.approx([rate * factor for factor in factors])

    cut = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", cut)
    shutil.rmtree(cut / "checkpoints" / "checkpoint-6")
    for folder in ("model", "deployment_model"):
        shutil.rmtree(cut / folder)
    record = read_json(cut / "run.json")
    record["stages"]["train"]["status"] = record["status"] = "running"
    (cut / "run.json").write_text(json.dumps(record))
    record = run_training(config, cut)
    assert record["stages"]["train"]["resumed_from"] == "checkpoint-3"
    assert losses(cut) == losses(tmp_path / "whole")
    assert weights(cut) == weights(tmp_path / "whole")
    again = [row for row in read_jsonl(cut / "metrics.jsonl") if "loss" in row]
    assert [row["learning_rate_vision"] for row in again] == [row["learning_rate_vision"] for row in rows]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["peft.train_parts=[language]"], "train.vision_learning_rate=0.0001: peft.train_parts leaves the vision part"),
        (["train.optim=galore_adamw"], "train.optim=galore_adamw groups the weights itself"),
        (["train.optim=adalomo"], "train.optim=adalomo groups"),
    ],
)
def test_rates_that_cannot_be(small, overrides, message):
    with pytest.raises(UserError, match=message):
        small("train.vision_learning_rate=1e-4", *overrides)


def test_a_part_that_the_adapter_leaves_out(model):
    adapted = attach(model, peft.LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(UserError, match=r"train.vision_learning_rate=0.0001: no weight of the vision part is trained"):
        require_parts(adapted, {"vision": 1e-4}, DEFAULT_PATTERNS.part_of)
