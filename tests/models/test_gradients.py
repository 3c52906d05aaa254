"""No graph where nothing is trained, whatever gradient checkpointing demands."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch

from tests.models.test_families import LORA, examples, family, photos  # noqa: F401  # fixtures
from vlmexp.models.adapter import attach
from vlmexp.models.encoders import Encoder
from vlmexp.models.gradients import demand_no_idle_gradients
from vlmexp.models.modules import DEFAULT_PATTERNS


def checkpointed(model: Any, reentrant: bool, mine: bool) -> Any:
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # nothing in the beginning, so that A would have no gradient
            torch.nn.init.constant_(weight, 0.02)
    if mine:
        demand_no_idle_gradients(model, reentrant)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    return model.train()


def has_graph(model: Any, batch: dict[str, torch.Tensor]) -> bool:
    return any(made.requires_grad for made, _ in Encoder(model, DEFAULT_PATTERNS).encode(batch).values())


def gradients(model: Any, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor | None]:
    model(**batch, use_cache=False).loss.backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_frozen_tower_has_no_graph_and_gradients_are_the_same(family, examples, reentrant):  # noqa: F811
    batch = family.collator()(examples)
    found = []
    for mine in (False, True):
        torch.manual_seed(0)
        model = checkpointed(attach(family.model(), LORA, ["language"]), reentrant, mine)
        assert has_graph(model, batch) is (not mine and family.choice != "qwen3vl")  # which has no such embedding
        found.append(gradients(model, batch))
    theirs, ours = found
    assert len(ours) >= 16
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@pytest.mark.parametrize("family", ["qwen2vl", "qwen3vl", "llava15", "idefics3"], indirect=True)
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_trained_tower_keeps_its_gradients(family, examples, reentrant):  # noqa: F811
    batch = family.collator()(examples)
    found = []
    for mine in (False, True):
        torch.manual_seed(0)
        found.append(gradients(checkpointed(attach(family.model(), LORA), reentrant, mine), batch))
    theirs, ours = found
    for name, value in theirs.items():
        assert (ours[name] is None) if value is None else torch.equal(ours[name], value), name


def test_below_the_first_trained_layer_there_is_no_graph(model, make_collator, draw):
    from tests.conftest import example

    last = len(model.model.visual.blocks) - 1
    adapted = attach(model, peft.LoraConfig(r=2, target_modules=rf".*visual\.blocks\.{last}\.mlp\.fc1"))
    checkpointed(adapted, reentrant=False, mine=True)
    seen = []
    for block in model.model.visual.blocks:
        block.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].requires_grad))
    collator = make_collator("collator.label_masking.mask_input_tokens=true")
    found = gradients(adapted, collator([example("what color?", "red", draw("red"))]))
    assert not any(seen)
    assert len(found) == 2
    assert all(value is not None and value.abs().sum() > 0 for value in found.values())
