"""Greedy answers to several questions about one image, the image read once.

A row of the batch is an image: its prefix and behind it all its questions, each of which sees the prefix and itself
(vlmexp.collator.sharing). One forward pass reads them all; every further pass adds one token to every answer of every
row. The vision tower, the prefix and its key-value cache are paid once an image, whatever the number of questions.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import DynamicCache

from vlmexp.collator.batch import Collator
from vlmexp.collator.sharing import BRANCHES, branch_inputs
from vlmexp.data.example import Example


@torch.inference_mode()
def shared_answers(
    model: Any, collator: Collator, examples: Sequence[Example], max_new_tokens: int, end_ids: Collection[int]
) -> list[list[int]]:
    """Token ids of the answer to each example, without the token that ends it."""
    batch, places = collator.packed_prompts(examples)
    batch = {name: on_device(value, model) for name, value in batch.items()}
    branch = batch[BRANCHES]
    rows, tokens = branch.shape
    branches = int(branch.max())
    number = torch.arange(1, branches + 1, device=branch.device)
    index = torch.arange(tokens, device=branch.device)
    # [rows, branches]: where each question ends; a row with fewer questions repeats its last token, and nobody asks.
    last = torch.where(branch[:, None, :] == number[:, None], index, -1).amax(2)
    last = torch.where(last < 0, (branch >= 0).sum(1, keepdim=True) - 1, last)

    inputs = branch_inputs(model, batch, model.dtype)
    keep = last.unique()  # the vocabulary is large: logits at the questions' ends only
    cache = DynamicCache()
    logits = model(**inputs, past_key_values=cache, use_cache=True, logits_to_keep=keep).logits
    chosen = torch.searchsorted(keep, last)
    said = logits.gather(1, chosen[..., None].expand(-1, -1, logits.shape[-1])).argmax(-1)
    positions = inputs["position_ids"]
    positions = positions.gather(-1, last.expand(*positions.shape[:-1], branches))

    answers = [said]
    keys = branch
    ends = torch.tensor(sorted(end_ids), device=branch.device)
    done = torch.isin(said, ends)
    used = torch.zeros_like(done)
    for row, place in places:
        used[row, place - 1] = True
    for _ in range(max_new_tokens - 1):
        if bool((done | ~used).all()):
            break
        keys = torch.cat([keys, number.expand(rows, -1)], dim=1)
        seen = (keys[:, None, :] == 0) | (keys[:, None, :] == number[:, None])
        mask = torch.zeros(seen.shape, dtype=model.dtype, device=branch.device)
        mask = mask.masked_fill_(~seen, torch.finfo(model.dtype).min)[:, None]
        positions = positions + 1
        step = {"input_ids": said, "attention_mask": mask, "position_ids": positions}
        said = model(**step, past_key_values=cache, use_cache=True).logits.argmax(-1)
        answers.append(said)
        done = done | torch.isin(said, ends)
    spoken = torch.stack(answers, dim=-1).tolist()
    return [_until_end(spoken[row][place - 1], end_ids) for row, place in places]


def _until_end(ids: list[int], end_ids: Collection[int]) -> list[int]:
    return ids[: next((index for index, token in enumerate(ids) if token in end_ids), len(ids))]


def on_device(value: torch.Tensor, model: Any) -> torch.Tensor:
    """An input where the model is, and in its dtype if it is no integer."""
    value = value.to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value
