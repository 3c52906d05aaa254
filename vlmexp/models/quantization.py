"""QLoRA: the frozen base model in 4 or 8 bits (Dettmers et al., https://arxiv.org/abs/2305.14314)."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import BitsAndBytesConfig

from vlmexp.errors import UserError
from vlmexp.models.modules import ModulePatterns


def quantization_config(options: Mapping[str, Any] | None, modules: ModulePatterns) -> BitsAndBytesConfig | None:
    """The fields of `BitsAndBytesConfig` as such; None without any.

    Unless `llm_int8_skip_modules` says otherwise, only the language model is quantised. Vision tower and projector
    are a small share of the weights and suffer more from 4 bits, and so does the output head. Where the head is tied
    to the embeddings it is no weight of its own; embeddings are never quantised.

    Raises:
        UserError: bitsandbytes is not installed, or an option has a wrong value.
    """
    if not options:
        return None
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError("peft.quantization needs the package bitsandbytes: pip install bitsandbytes.")
    skipped = ["lm_head", rf".*(?:{modules.projector}).*", rf".*(?:{modules.vision}).*"]
    try:
        return BitsAndBytesConfig(**{"llm_int8_skip_modules": skipped, **options})
    except (TypeError, ValueError, AttributeError) as error:
        raise UserError(f"peft.quantization: BitsAndBytesConfig refuses its options: {error}.") from None


def keep_trainable(model: nn.Module) -> None:
    """Keep a quantised model's weights in the layout that gradients can pass.

    On CPUs with AVX512-BF16 the first evaluation would repack them for inference, and bitsandbytes neither has
    gradients for that layout nor leaves it when training goes on.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010  # nn.Module's own is typed for tensors
