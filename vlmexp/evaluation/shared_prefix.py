"""Several questions about one image, the image read once.

A row of the batch is an image: its prefix and behind it all its questions, each of which sees the prefix and itself
(vlmexp.collator.sharing). One forward pass reads them all. A further pass adds tokens behind the questions of all rows:
one to each answer, or those of all candidates for an answer. The vision tower, the prefix and its key-value cache are
paid once an image, whatever the number of questions.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache

from vlmexp.collator.packing import packed_inputs
from vlmexp.collator.sharing import BRANCHES, branch_inputs
from vlmexp.models.masked_attention import taking_masks

Prompts = tuple[dict[str, torch.Tensor], list[tuple[int, int]]]  # what Collator.packed_prompts gives


@dataclass
class Prefill:
    """What is known after the questions were read.

    Attributes:
        branch: [rows, tokens] 0: prefix, 1..: questions, -1: padding.
        logits: [rows, questions, vocabulary] behind each question.
        positions: [rows, questions] of the last token of each question; with M-RoPE [3, rows, questions].
        cache: keys and values of all tokens.
    """

    branch: torch.Tensor
    logits: torch.Tensor
    positions: torch.Tensor
    cache: DynamicCache


def prefill(model: Any, batch: dict[str, torch.Tensor], packed: bool) -> Prefill:
    """Read the prompts. A row with fewer questions than another repeats its last token, and nobody asks.

    Args:
        batch: of Collator.packed_prompts.
        packed: read all rows as one, without padding and without a mask (vlmexp.collator.packing).
    """
    branch = batch[BRANCHES]
    ends, device = last_tokens(branch), model.device
    batch = {name: on_device(value, model) for name, value in batch.items()}
    inputs = packed_inputs(model, batch) if packed else branch_inputs(model, batch, model.dtype)
    # Where each token stands in what is read: in which row, and in which place of it.
    place = (branch >= 0).flatten().cumsum(0).view_as(branch) - 1 if packed else torch.arange(branch.shape[1])
    row = torch.zeros_like(ends) if packed else torch.arange(len(branch))[:, None]
    where = place.expand_as(branch).gather(1, ends)
    keep = where.unique()  # the vocabulary is large: logits at the questions' ends only
    cache = DynamicCache()
    logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=keep.to(device)).logits
    if packed:
        into_rows(cache, place)
    chosen, row, where = (index.to(device) for index in (torch.searchsorted(keep, where), row, where))
    return Prefill(branch.to(device), logits[row, chosen], inputs["position_ids"][..., row, where], cache)


def last_tokens(branch: torch.Tensor) -> torch.Tensor:
    """[rows, questions] where each question ends; the row's end for one that it does not have."""
    number = torch.arange(1, int(branch.max()) + 1)
    index = torch.arange(branch.shape[1])
    last = torch.where(branch[:, None, :] == number[:, None], index, -1).amax(2)
    return torch.where(last < 0, (branch >= 0).sum(1, keepdim=True) - 1, last)


def into_rows(cache: Any, place: torch.Tensor) -> None:
    """Lay out what is known of one row's tokens as rows.

    Args:
        place: [rows, tokens] which token of the one row stands there.
    """
    for layer in cache.layers:
        place = place.to(layer.keys.device)
        layer.keys, layer.values = (states[0][:, place].transpose(0, 1) for states in (layer.keys, layer.values))


def mask_of(seen: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[rows, 1, queries, keys] mask to add to attention scores, from whether a query sees a key."""
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


@torch.inference_mode()
def shared_answers(
    model: Any, prompts: Prompts, max_new_tokens: int, end_ids: Collection[int], packed: bool = False
) -> list[list[int]]:
    """Token ids of the greedy answer to each question, without the token that ends it.

    Args:
        packed: see `prefill`.
    """
    batch, places = prompts
    read = prefill(model, batch, packed)
    said, positions, keys = read.logits.argmax(-1), read.positions, read.branch
    rows, branches = said.shape
    number = torch.arange(1, branches + 1, device=said.device)
    answers = [said]
    ends = torch.tensor(sorted(end_ids), device=said.device)
    unused = torch.ones(said.shape, dtype=torch.bool)
    unused[tuple(zip(*((row, place - 1) for row, place in places), strict=True))] = False
    done = torch.isin(said, ends) | unused.to(said.device)
    with taking_masks(model):
        for _ in range(max_new_tokens - 1):
            if bool(done.all()):
                break
            keys = torch.cat([keys, number.expand(rows, -1)], dim=1)
            seen = (keys[:, None, :] == 0) | (keys[:, None, :] == number[:, None])
            positions = positions + 1
            step = {"input_ids": said, "attention_mask": mask_of(seen, model.dtype), "position_ids": positions}
            said = model(**step, past_key_values=read.cache, use_cache=True).logits.argmax(-1)
            answers.append(said)
            done |= torch.isin(said, ends)
    spoken = torch.stack(answers, dim=-1).tolist()
    return [until_end(spoken[row][place - 1], end_ids) for row, place in places]


def until_end(ids: list[int], end_ids: Collection[int]) -> list[int]:
    """The tokens before the first that ends an answer."""
    return ids[: next((index for index, token in enumerate(ids) if token in end_ids), len(ids))]


def on_device(value: torch.Tensor, model: Any) -> torch.Tensor:
    """An input where the model is, and in its dtype if it is no integer."""
    value = value.to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value
