"""Each implementation of attention learns what sdpa learns from rows by themselves: losses and gradients."""

from __future__ import annotations

import pytest
import torch
from transformers.utils import is_flash_attn_2_available, is_torch_flex_attn_available

from tests.gpu.conftest import ON_CPU, in_precision

FAMILIES = ("qwen2vl", "llava15", "paligemma")
# Of a loss, and of the norm of a gradient in relation to its size: bfloat16 has 8 bits.
CLOSE = {"float32": (1e-4, 1e-3), "bfloat16": (2e-2, 1e-1)}


def require(implementation: str) -> None:
    """Skip where an implementation cannot be had."""
    if implementation == "flash_attention_2" and not is_flash_attn_2_available():
        pytest.skip("flash-attn is not installed")
    if implementation == "flex_attention" and (ON_CPU or not is_torch_flex_attn_available()):
        pytest.skip("flex attention has no gradients here")


def assert_alike(one, other, precision: str) -> None:
    loss, norm = CLOSE[precision]
    assert one.losses == pytest.approx(other.losses, abs=loss)
    assert one.grad_norms == pytest.approx(other.grad_norms, rel=norm)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_learns_alike_with_sdpa_eager_and_flex_plain_and_by_default(family, steps, plain):
    """By default images are shared and rows are packed where the model can."""
    exact = in_precision("float32")
    reference = steps(family, *exact, "model.attn_implementation=sdpa", *plain)
    assert_alike(steps(family, *exact, "model.attn_implementation=sdpa"), reference, "float32")
    assert_alike(steps(family, *exact, "model.attn_implementation=eager", *plain), reference, "float32")
    if not ON_CPU and is_torch_flex_attn_available():
        assert_alike(steps(family, *exact, "model.attn_implementation=flex_attention"), reference, "float32")


@pytest.mark.parametrize("implementation", ["sdpa", "flash_attention_2", "flex_attention"])
def test_bfloat16_learns_what_float32_learns(implementation, steps, plain):
    require(implementation)
    reference = steps("qwen2vl", *in_precision("float32"), "model.attn_implementation=sdpa", *plain)
    half = [*in_precision("bfloat16"), f"model.attn_implementation={implementation}"]
    assert_alike(steps("qwen2vl", *half, *plain), reference, "bfloat16")
    assert_alike(steps("qwen2vl", *half), reference, "bfloat16")


def test_bfloat16_is_what_is_computed_in(steps):
    record = steps("qwen2vl", *in_precision("bfloat16")).record
    assert record["model"]["dtype"] == ("float32" if ON_CPU else "bfloat16")
    assert record["model"]["device"] == ("cpu" if ON_CPU else torch.cuda.get_device_name())
