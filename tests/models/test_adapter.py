from __future__ import annotations

import peft
import pytest
import torch

from tests.conftest import example
from vlmexp import config
from vlmexp.errors import UserError
from vlmexp.models.adapter import attach, peft_config
from vlmexp.models.modules import PARTS, ModulePatterns

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


@pytest.mark.parametrize(
    ("options", "train_parts", "message"),
    [
        ({"r": 0}, PARTS, "should be a positive integer"),
        ({"target_modules": ["q_prj"]}, PARTS, r"\['q_prj'\] match no module .* did you mean 'q_proj'\?"),
        (
            {"target_modules": r".*nothing.*"},
            PARTS,
            r"match no module of Qwen2VL.* Its linear layers are called: .*q_proj",
        ),
        (
            {"target_modules": ["qkv"]},
            ["language"],
            r"\['qkv'\] match only frozen modules \(4 of the vision part\): peft.train_parts=\['language'\]",
        ),
        (
            {"target_modules": r".*language_model.*q_proj", "exclude_modules": ["k_proj"]},
            ["vision", "projector"],
            "match only frozen modules .4 of the language part",
        ),
        ({"target_modules": ["norm1"]}, PARTS, "PEFT can adapt none of them"),
    ],
)
def test_adapters_that_cannot_be(options, train_parts, message, model):
    with pytest.raises(UserError, match=message):
        attach(model, peft_config("LoraConfig", {**LORA, **options}), train_parts)


def test_what_the_user_leaves_out_stays_out(model):
    adapted = attach(model, peft_config("LoraConfig", {**LORA, "exclude_modules": ["q_proj", "k_proj"]}), ["language"])
    targets = {
        name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name
    }
    assert targets == {"v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_own_patterns_find_the_parts(model):
    patterns = ModulePatterns(vision=r"^never$", projector=r"visual\.merger")
    adapted = attach(model, peft_config("LoraConfig", LORA), ["projector"], patterns)
    assert {name.partition("merger")[1] for name, p in adapted.named_parameters() if p.requires_grad} == {"merger"}


@pytest.mark.parametrize("whole", ["merger", "lm_head"])
def test_whole_modules_learn_small_steps_in_bfloat16(whole, model, make_collator, draw):
    """A step of 1e-5 is below the precision of a weight of 0.02 in bfloat16."""
    batch = make_collator()([example("is it red?", "yes", draw("red"))])
    adapted = attach(model.to(torch.bfloat16), peft_config("LoraConfig", {**LORA, "modules_to_save": [whole]}))
    trained = {name: p for name, p in adapted.named_parameters() if "modules_to_save" in name}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-5, weight_decay=0.0)
    loss = adapted(**batch).loss
    loss.backward()
    optimizer.step()
    assert {p.dtype for p in trained.values()} == {torch.float32}
    assert adapted.get_base_model().model.language_model.embed_tokens.weight.dtype == torch.bfloat16
    for name, weight in trained.items():
        moved = (weight.grad != 0) & (weight != before[name])
        assert moved.sum() > 0.99 * (weight.grad.abs() > 1e-7).sum(), name


def test_a_method_that_cannot_leave_parts_out_says_so(model):
    prompts = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    with pytest.raises(UserError, match="PromptTuningConfig cannot leave parts"):
        attach(model, prompts, ["language"])


def test_config_and_models_know_the_same_parts():
    assert config.PARTS == PARTS
