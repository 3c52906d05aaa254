"""Which trained weights get no gradient, told after the first steps."""

from __future__ import annotations

import logging
import shutil

import peft
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch.utils.data import SequentialSampler
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from tests.training.test_train import run_training
from vlmexp.errors import UserError
from vlmexp.files import read_json
from vlmexp.models.adapter import attach
from vlmexp.models.modules import DEFAULT_PATTERNS
from vlmexp.training.audit import GradientAudit, grouped
from vlmexp.training.trainer import VlmTrainer

IMAGE_TOKEN = 60
LAST_VISION_LAYER = [
    "model.vision_tower.encoder.layers.{2}.self_attn.*.lora_A (4 tensors)",
    "model.vision_tower.encoder.layers.{2}.self_attn.*.lora_B (4 tensors)",
    "model.vision_tower.encoder.layers.{2}.mlp.*.lora_A (2 tensors)",
    "model.vision_tower.encoder.layers.{2}.mlp.*.lora_B (2 tensors)",
]


def llava() -> LlavaForConditionalGeneration:
    """Reads the image from the last but one of three vision layers, as the published checkpoints do."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, image_size=28, patch_size=14
    )
    text = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2,
    )  # fmt: skip
    return LlavaForConditionalGeneration(
        LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE_TOKEN, vision_feature_layer=-2)
    )


def batches(count: int, with_image: bool) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(count):
        ids = torch.randint(0, 50, (10,), generator=generator)
        ids[1:5] = IMAGE_TOKEN if with_image else 7
        row = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.where(ids < 50, -100)}
        found.append(row | ({"pixel_values": torch.randn(3, 28, 28, generator=generator)} if with_image else {}))
    return found


def audited(tmp_path, adapter, mode="warn", with_image=True, **options) -> tuple[dict, VlmTrainer]:
    """Train for four steps; what the audit recorded, and the trainer."""
    record: dict = {}
    model = attach(llava(), adapter)
    data = batches(16, with_image)
    arguments = {"max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 1, **options}
    trainer = VlmTrainer(
        model,
        TrainingArguments(str(tmp_path), report_to=[], remove_unused_columns=False, save_strategy="no", **arguments),
        train_dataset=data,
        train_sampler=SequentialSampler(data),
        callbacks=[GradientAudit(mode, DEFAULT_PATTERNS.part_of, lambda **values: record.update(values))],
    )
    try:
        trainer.train()
    except UserError as error:
        record["error"] = str(error)
    return record, trainer


def lora(**options) -> peft.LoraConfig:
    return peft.LoraConfig(r=2, target_modules="all-linear", **options)


def test_the_vision_layer_behind_the_one_that_is_read_is_named(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "vlmexp"):
        record, trainer = audited(tmp_path, lora())
    found = record["gradient_audit"]
    assert found["without_gradient"] == LAST_VISION_LAYER
    assert (found["step"], found["trainable"], trainer.state.global_step) == (2, 68, 4)
    assert found["norms"].keys() == {"vision", "projector", "language"}
    assert min(found["norms"].values()) > 0
    (warning,) = [entry.message for entry in caplog.records if "gradient_audit" in entry.message]
    assert "12 of 68 trained tensors had no gradient in the steps 1 to 2: model.vision_tower.encoder.layers.{2}" in (
        warning
    )
    assert "peft.exclude_modules" in warning


def test_an_error_stops_before_the_next_step(tmp_path):
    record, trainer = audited(tmp_path, lora(), mode="error")
    assert record["gradient_audit"]["without_gradient"] == LAST_VISION_LAYER
    assert record["error"].endswith("or set train.gradient_audit=warn.")
    assert trainer.state.global_step == 1  # the second is not counted: it raised


def test_the_advice_helps(tmp_path):
    record, _ = audited(tmp_path, lora(exclude_modules=r".*vision_tower\.encoder\.layers\.2\..*"), mode="error")
    assert record["gradient_audit"]["without_gradient"] == []
    assert record["gradient_audit"]["trainable"] == 56
    assert "error" not in record


def test_text_alone_reaches_no_vision_tower(tmp_path):
    record, _ = audited(tmp_path, lora(), mode="error", with_image=False)
    assert "40 of 68 trained tensors" in record["error"]
    assert "steps 1 to 2: all 36 of the vision part, all 4 of the projector part. What the loss" in record["error"]
    assert "was there an image in these steps?" in record["error"]
    assert record["gradient_audit"]["norms"]["vision"] == 0
    assert record["gradient_audit"]["norms"]["language"] > 0


def test_norms_are_of_the_gradients_that_the_optimizer_gets(tmp_path):
    record, _ = audited(tmp_path, lora(), max_grad_norm=1e-3, gradient_accumulation_steps=2)
    assert sum(norm**2 for norm in record["gradient_audit"]["norms"].values()) ** 0.5 == pytest.approx(1e-3, rel=1e-2)


def test_a_warm_up_from_zero_moves_no_weights_in_its_first_step(tmp_path):
    """So that after two steps LoRA's A tensors, rightly, have no gradient yet."""
    record, _ = audited(tmp_path, lora(), warmup_steps=2)
    assert record["gradient_audit"]["step"] == 3
    assert record["gradient_audit"]["without_gradient"] == LAST_VISION_LAYER


def test_too_short_a_training_is_not_judged(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "vlmexp"):
        record, _ = audited(tmp_path, lora(), mode="error", max_steps=1)
    assert record == {"gradient_audit": {"step": None, "steps_seen": 1}}
    assert "1 steps are too few to tell" in caplog.text


def test_all_weights_of_a_model(tmp_path):
    record, _ = audited(tmp_path, None)
    found = record["gradient_audit"]
    assert found["step"] == 2
    assert "model.vision_tower.encoder.layers.{2}.mlp.*.weight (2 tensors)" in found["without_gradient"]
    assert "model.vision_tower.post_layernorm.weight (1 tensor)" in found["without_gradient"]
    assert not [name for name in found["without_gradient"] if "language_model" in name]


def test_steps_that_the_loss_scale_skipped_do_not_count():
    Accelerator(cpu=True)
    weight, half = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.zeros(2))
    model = torch.nn.ParameterDict({"a": weight, "b": half})
    optimizer = AcceleratedOptimizer(torch.optim.SGD([weight, half], lr=0.1), scaler=torch.amp.GradScaler("cpu"))
    record: dict = {}
    audit = GradientAudit("error", lambda name: "language", lambda **values: record.update(values))
    state, control = TrainerState(), TrainerControl()
    for step, overflow in enumerate([True, True, False, False]):
        loss = (weight * half).sum() * (float("inf") if overflow else 1.0)
        optimizer.scaler.scale(loss).backward()
        optimizer.scaler.unscale_(optimizer.optimizer)
        state.global_step = step
        audit.on_pre_optimizer_step(None, state, control, model=model)
        optimizer.step()
        assert optimizer.step_was_skipped == overflow
        audit.on_optimizer_step(None, state, control, optimizer=optimizer)
        optimizer.optimizer.zero_grad()
    assert record["gradient_audit"]["step"] == 4
    assert record["gradient_audit"]["without_gradient"] == []


def test_a_run_records_it_and_a_resumed_one_again(small, tmp_path):
    config = small("train.warmup_steps=0", "train.gradient_audit=error", "train.save_total_limit=20")
    record = run_training(config, tmp_path / "whole")
    assert record["gradient_audit"]["without_gradient"] == []
    assert record["gradient_audit"]["step"] == 2
    for name in ("model", "deployment_model"):
        shutil.rmtree(tmp_path / "whole" / name)
    for path in (tmp_path / "whole" / "checkpoints").iterdir():
        if path.name != "checkpoint-3":
            shutil.rmtree(path)
    text = (tmp_path / "whole" / "run.json").read_text().replace('"done"', '"running"')
    (tmp_path / "whole" / "run.json").write_text(text)
    record = run_training(config, tmp_path / "whole")
    assert record["stages"]["train"]["resumed_from"] == "checkpoint-3"
    assert record["gradient_audit"]["step"] == 4  # B is not zero any more: one step is enough


def test_all_weights_have_a_gradient_in_the_first_step(small, tmp_path):
    config = small("train.max_steps=2", "train.gradient_audit=error")
    config.peft = {"config_class": None}
    record = run_training(config, tmp_path / "run")
    assert record["gradient_audit"]["step"] == 1
    assert record["gradient_audit"]["trainable"] == 105


def test_off_is_off(small, tmp_path):
    assert "gradient_audit" not in run_training(
        small("train.max_steps=3", "train.gradient_audit=off"), tmp_path / "run"
    )
    assert "gradient_audit" not in read_json(tmp_path / "run" / "run.json")


def test_names_are_put_together():
    lora_name = "base_model.model.model.vision_tower.layers.{}.self_attn.{}.lora_A.default.weight"
    names = [lora_name.format(layer, module) for layer in (0, 1, 2, 7) for module in ("q_proj", "v_proj")]
    assert grouped(names) == ["model.vision_tower.layers.{0-2,7}.self_attn.*.lora_A (8 tensors)"]
    assert grouped([lora_name.format(23, "q_proj")]) == [
        "model.vision_tower.layers.{23}.self_attn.q_proj.lora_A (1 tensor)"
    ]
    assert grouped(["lm_head.weight", "visual.merger.mlp.0.bias", "visual.merger.mlp.2.bias"]) == [
        "lm_head.weight (1 tensor)",
        "visual.merger.mlp.{0,2}.bias (2 tensors)",
    ]
    assert grouped([]) == []
