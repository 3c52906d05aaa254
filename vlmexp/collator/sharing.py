"""Several questions behind one image prefix: exactly the separate samples' loss and gradients for fewer tokens.

    separate   [image question1 answer1]        packed   [image question1 answer1 question2 answer2 ...]
               [image question2 answer2]        branch      0       1        1        2        2

A branch sees the prefix and itself, and its positions go on from the prefix's end, so every token gets the hidden state
that it would have alone. The collator packs rows and numbers branches; `branch_inputs` (and vlmexp.collator.packing,
without a mask) turns the numbers into the mask and positions, for which the model must be at hand (M-RoPE).
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from vlmexp.collator.encode import Row

BRANCHES = "branch_ids"  # [batch, tokens]: 0 prefix, 1.. branches, -1 padding
PADDING = -1


def pack(rows: Sequence[tuple[Row, list[int]]], ignore_index: int) -> tuple[Row, list[int], list[int]]:
    """Pack rows about the same media, each with its labels, into one row: (row, labels, branch ids).

    The prefix is what the prompts have in common, up to one token before the shortest prompt's end: the token from
    which an answer's first token is predicted must be the branch's own. Labels in a prefix must all be `ignore_index`.
    """
    first = rows[0][0]
    shared = min(row.prompt_length for row, _ in rows) - 1
    ids = first.sequences["input_ids"]
    for row, _ in rows[1:]:
        others = row.sequences["input_ids"]
        begin = first.media_end if ids[: first.media_end] == others[: first.media_end] else 0
        shared = next((index for index in range(begin, shared) if ids[index] != others[index]), shared)
    if shared < first.media_end:
        raise RuntimeError("the shared prefix must hold all of the media's tokens")
    if any(labels[: shared + 1].count(ignore_index) <= shared for _, labels in rows):
        raise RuntimeError("a shared prefix cannot carry a loss")
    sequences = {name: list(values[:shared]) for name, values in first.sequences.items()}
    labels, branches = [ignore_index] * shared, [0] * shared
    for number, (row, row_labels) in enumerate(rows, start=1):
        for name, values in sequences.items():
            values += row.sequences[name][shared:]
        labels += row_labels[shared:]
        branches += [number] * (len(row) - shared)
    return Row(sequences, shared, first.media_key, first.media_end), labels, branches


def branch_inputs(model: nn.Module, batch: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Replace `branch_ids` and the 2-D attention mask by a 4-D mask and position ids."""
    positions = row_positions(model, batch)
    batch = dict(batch)
    branch = batch.pop(BRANCHES)
    index = torch.arange(branch.shape[1], device=branch.device)
    seen = (index[:, None] >= index[None, :]) & ((branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None]))
    mask = torch.zeros(seen.shape, dtype=dtype, device=branch.device).masked_fill_(~seen, torch.finfo(dtype).min)
    return {**batch, "attention_mask": mask[:, None], "position_ids": positions}


def row_positions(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[rows, tokens], or with M-RoPE [3, rows, tokens]: where each token would stand without other branches."""
    linear = _linear_positions(model, batch)
    if linear is None:
        linear = (batch["attention_mask"].long().cumsum(1) - 1).clamp(min=0)
    if BRANCHES not in batch:
        return linear
    branch = batch[BRANCHES]
    index = torch.arange(branch.shape[1], device=branch.device)
    prefix_length = (branch == 0).sum(1, keepdim=True)
    is_start = torch.cat([torch.zeros_like(branch[:, :1]), (branch[:, 1:] != branch[:, :-1]).long()], dim=1)
    branch_start = torch.where(is_start.bool(), index, 0).cummax(1).values
    skipped = torch.where(branch > 0, branch_start - prefix_length, 0).clamp(min=0)  # tokens of earlier branches
    return (linear - skipped).clamp(min=0)


def _linear_positions(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """[3, batch, tokens] positions of the packed rows read as plain text, for models with M-RoPE; else None.

    Behind the media M-RoPE counts text tokens one by one in all three dimensions, so a branch's positions are these
    minus the tokens of the branches before it.
    """
    rope: Any = next((m.get_rope_index for m in model.modules() if hasattr(m, "get_rope_index")), None)
    if rope is None:
        return None
    wanted = inspect.signature(rope).parameters
    if "mm_token_type_ids" in wanted and "mm_token_type_ids" not in batch:  # a batch without media counts one by one
        return None
    positions = rope(**{name: value for name, value in batch.items() if name in wanted})[0]
    assert isinstance(positions, torch.Tensor)
    return positions
