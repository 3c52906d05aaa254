"""A padded batch as one row without padding: exactly the same loss and gradients for fewer tokens.

Which tokens see each other is told by a sight (vlmexp.models.packed_attention), so that neither padding nor a mask of
tokens times tokens is ever computed, for rows of different lengths as for several questions behind one image.
"""

from __future__ import annotations

from itertools import accumulate, pairwise

import torch
from torch import nn

from vlmexp.collator.sharing import BRANCHES, PADDING, row_positions
from vlmexp.models.packed_attention import Layout, Segment, teach_attention

_NO_LOSS = -100


def packed_inputs(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The real tokens of all rows behind each other, as [1, tokens]; what is no value of a token stays as it is.

    Args:
        batch: of the collator, with labels and without.
    """
    teach_attention()
    tokens, device = batch["input_ids"].shape, batch["input_ids"].device
    number = numbered(batch).cpu()  # the only thing that has to come back from the device
    index = (number.flatten() >= 0).nonzero()[:, 0].to(device)
    positions = row_positions(model, batch).flatten(-2)[..., index].unsqueeze(-2)
    packed = {
        name: value.flatten()[index][None] if value.shape == tokens and not value.is_floating_point() else value
        for name, value in batch.items()
        if name not in (BRANCHES, "attention_mask")
    }
    if "labels" in packed:  # a row's first token is predicted from nothing, and not from the row before
        starts = [0, *accumulate((number >= 0).sum(1).tolist())][:-1]
        packed["labels"][0, torch.tensor(starts, device=device)] = _NO_LOSS
    return {**packed, "attention_mask": Layout(segments(number)).sight(device), "position_ids": positions}


def numbered(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """[rows, tokens] number of each token's branch, 0 of a prefix or of a row without branches, -1 of padding."""
    return batch[BRANCHES] if BRANCHES in batch else batch["attention_mask"].long() - 1


def segments(number: torch.Tensor) -> list[Segment]:
    """The segments of the real tokens of all rows, one row after another.

    Args:
        number: [rows, tokens] as `numbered` gives it, on the CPU.
    """
    found, begin = list[Segment](), 0
    for row in number:
        kinds, counts = row[row != PADDING].unique_consecutive(return_counts=True)
        ends = [begin, *accumulate(counts.tolist(), initial=begin)][1:]
        has_prefix = int(kinds[0]) == 0
        if len(counts) == 1 + has_prefix or len(counts) == 1:  # one question sees all before it, as in a row of its own
            found.append(Segment(begin, ends[-1]))
        else:
            prefix = (begin, ends[1]) if has_prefix else None
            found += [Segment(s, e, prefix if (s, e) != prefix else None) for s, e in pairwise(ends)]
        begin = ends[-1]
    return found
