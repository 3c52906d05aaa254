"""QLoRA: what is in 4 bits, that it learns, that it is evaluated as it was trained, and what is refused."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections import Counter

import pytest
import torch
from safetensors import safe_open

from tests.conftest import example, only_run
from vlmexp.errors import UserError
from vlmexp.files import read_json
from vlmexp.models.adapter import attach, merged, peft_config, trainable_parameters
from vlmexp.models.load import ModelSource, check_model, load_model

NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
SOURCE = ModelSource("vlmexp:tiny", quantization={**NF4, "bnb_4bit_compute_dtype": "bfloat16"})
LORA = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
installed = importlib.util.find_spec("bitsandbytes") is not None
needs_bitsandbytes = pytest.mark.skipif(not installed, reason="bitsandbytes is not installed: pip install bitsandbytes")


def linear_layers(model: torch.nn.Module) -> Counter:
    parts = SOURCE.modules
    return Counter(
        (parts.part_of(name), type(module).__name__)
        for name, module in model.named_modules()
        if "Linear" in type(module).__name__
    )


@needs_bitsandbytes
def test_the_language_model_is_in_4_bits_and_nothing_else():
    model = load_model(SOURCE, pytest.fail)
    assert linear_layers(model) == {
        ("vision", "Linear"): 16,
        ("projector", "Linear"): 2,
        ("language", "Linear4bit"): 28,
        ("language", "Linear"): 1,
    }
    assert type(model.lm_head) is torch.nn.Linear
    assert model.model.language_model.layers[0].mlp.down_proj.weight.dtype == torch.uint8
    plain = load_model(ModelSource("vlmexp:tiny"), pytest.fail)
    assert trainable_parameters(model)[1] == trainable_parameters(plain)[1]


@needs_bitsandbytes
def test_a_list_of_ones_own_says_what_stays_as_it_is():
    own = dataclasses.replace(SOURCE, quantization={**SOURCE.quantization, "llm_int8_skip_modules": ["lm_head"]})
    counts = linear_layers(load_model(own, pytest.fail))
    assert counts == {
        ("vision", "Linear4bit"): 16,
        ("projector", "Linear4bit"): 2,
        ("language", "Linear4bit"): 28,
        ("language", "Linear"): 1,
    }


@needs_bitsandbytes
def test_it_learns_a_fixed_batch_also_after_an_evaluation(make_collator, draw):
    batch = make_collator()([example("is it red?", "yes", draw("red")), example("is it red?", "no", draw("blue"))])
    model = attach(load_model(SOURCE, pytest.fail), peft_config("LoraConfig", LORA))
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.dtype == torch.uint8}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    losses = []
    for _ in range(8):
        with torch.no_grad():
            losses.append(model.eval()(**batch).loss.item())
        model.train()(**batch).loss.backward()
        assert all(p.grad is not None for name, p in model.named_parameters() if "lora_B" in name)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] / 2, losses
    assert len(before) == 28
    for name, parameter in model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name]), name


@needs_bitsandbytes
def test_a_quantised_base_can_be_merged_and_saved(make_collator, draw, tmp_path):
    batch = make_collator().prompts([example("is it red?", "yes", draw("red"))])
    model = attach(load_model(SOURCE, pytest.fail), peft_config("LoraConfig", LORA)).eval()
    whole = merged(model)
    whole.save_pretrained(tmp_path)
    again = load_model(ModelSource(str(tmp_path)), pytest.fail)
    with torch.inference_mode():
        torch.testing.assert_close(again(**batch).logits, whole(**batch).logits, rtol=0, atol=1e-3)


@needs_bitsandbytes
@pytest.mark.slow
def test_a_whole_pipeline(cli, tmp_path):
    done = cli(
        "peft=qlora", "train.max_steps=4", "dataset.max_examples.train=128", "dataset.max_examples.validation=16",
        "evaluation.max_examples=16", "evaluation.blind=none", timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    record = read_json(run / "run.json")
    assert record["status"] == "done"
    assert record["stages"]["train"]["steps"] == 4
    assert (run / "evaluation" / "finetuned_vlm_model_evaluation.json").is_file()
    with safe_open(run / "model" / "adapter_model.safetensors", "pt") as adapter:
        assert any("language_model" in name for name in adapter.keys())  # noqa: SIM118  # it is no dict


def test_a_missing_package_is_a_sentence(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    for load in (check_model, load_model):
        with pytest.raises(UserError, match=r"needs the package bitsandbytes: pip install bitsandbytes"):
            load(SOURCE, pytest.fail)


@needs_bitsandbytes
def test_random_weights_cannot_be_quantised():
    with pytest.raises(UserError, match=r"model\.random_init=true has no weights to quantise"):
        load_model(dataclasses.replace(SOURCE, random_init=True), pytest.fail)


@pytest.mark.parametrize(
    ("override", "parts"),
    {
        "peft.quantization.load_in_4bits=true": ["has no option 'load_in_4bits'", "did you mean 'load_in_4bit'?"],
        "peft.quantization.load_in_4bit=yes please": ["load_in_4bit='yes please' must be bool"],
        "peft.quantization.bnb_4bit_quant_type=nf5": ["bnb_4bit_quant_type='nf5' must be one of nf4, fp4"],
        "peft.quantization.bnb_4bit_compute_dtype=bf16": ["bnb_4bit_compute_dtype='bf16'", "bfloat16"],
        "peft.quantization.load_in_8bit=true": ["set one of load_in_4bit and load_in_8bit"],
        "peft.quantization.load_in_4bit=false": ["set one of load_in_4bit and load_in_8bit"],
    }.items(),
)
def test_options_are_checked_before_anything_is_loaded(override, parts, compose):
    with pytest.raises(UserError) as caught:
        compose("peft=qlora", override)
    for part in parts:
        assert part in str(caught.value)
