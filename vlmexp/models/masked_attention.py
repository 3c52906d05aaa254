"""Attention of a few tokens to a long cache behind a mask, whatever implementation a model has.

Flash and flex attention take no mask of queries and keys. sdpa takes one, but copies all keys and values for every head
that shares them, and its kernels are made for many queries. Here the heads that share keys are queries of one product.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

NAME = "masked_cache"
OTHERS = ("position_bias", "s_aux", "softcap")  # what an attention may have besides


def masked_attention(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, scaling: float | None = None, **options: Any
) -> tuple[torch.Tensor, None]:
    """[rows, tokens, heads, size] of queries [rows, heads, tokens, size] and of keys and values of fewer heads.

    Args:
        attention_mask: [rows, 1, tokens, keys] to be added to the scores.

    Raises:
        ValueError: there is something in this attention that this one does not have.
    """
    if has := [name for name in OTHERS if options.get(name) is not None]:
        raise ValueError(f"a further pass cannot have attention with {has[0]}")
    rows, heads, tokens, size = query.shape
    groups = heads // key.shape[1]
    # The queries of the heads that share keys, one behind the other: [rows, heads of keys, groups * tokens, size]
    together = (query * (size**-0.5 if scaling is None else scaling)).reshape(rows, -1, groups * tokens, size)
    scores = together @ key.transpose(-1, -2)
    scores = scores.unflatten(2, (groups, tokens)) + attention_mask[:, :, None]
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype).flatten(2, 3)
    return (weights @ value).view(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


def refuses_window(model: Any, longest: int) -> str | None:
    """Why masks that know no sliding window are not those of this model; None: they are, for rows up to a length.

    Args:
        longest: tokens of a row.
    """
    config = model.config.get_text_config()
    windows = [getattr(module, "sliding_window", None) for module in model.modules()]
    if getattr(config, "use_sliding_window", True):
        windows.append(getattr(config, "sliding_window", None))
    smallest = min((window for window in windows if type(window) is int), default=longest)
    if longest <= smallest:
        return None
    return f"some layers look {smallest} tokens back, and the longest row has {longest}"


@cache
def _registered() -> None:
    AttentionInterface.register(NAME, masked_attention)
    AttentionMaskInterface.register(NAME, AttentionMaskInterface()["sdpa"])


@contextlib.contextmanager
def taking_masks(model: Any) -> Iterator[None]:
    """Within it the model's attention is `masked_attention`, except where it is eager, which takes masks as it is."""
    _registered()
    known = AttentionInterface()
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    own = [(c, c._attn_implementation) for c in configs.values() if getattr(c, "_attn_implementation", None) in known]
    try:
        for config, _ in own:  # not by the setter, which sets what is below it, too
            config._attn_implementation_internal = NAME
        yield
    finally:
        for config, name in own:
            config._attn_implementation_internal = name
