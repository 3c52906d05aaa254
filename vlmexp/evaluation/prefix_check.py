"""Whether questions behind one image prefix are answered as if alone, tried with the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlmexp import distributed
from vlmexp.collator.batch import Collator
from vlmexp.data.example import Example
from vlmexp.evaluation.ranking import Ranking, rank_answers
from vlmexp.models.masked_attention import refuses_window

EXACT = 1e-4  # of a log-likelihood in float32
MOST = 5e-2  # what lower precision is allowed to
_WORDS = ("yes", "no, not at all")


@dataclass(frozen=True)
class Sharing:
    """How questions about an image are asked.

    Attributes:
        refused: why each reads its image anew; None: they share it.
        packed: then they are read without padding.
    """

    refused: str | None = None
    packed: bool = False


def find_sharing(
    model: Any,
    collator: Collator,
    examples: Sequence[Example],
    keys: Sequence[object],
    packs: bool,
    is_known: bool,
    longest: int,
) -> Sharing:
    """What is exact with this model, the same on every rank.

    Args:
        longest: tokens of a question with its media and answer.
        keys: equal for examples about the same media.
        packs: whether reading without padding is wanted.
        is_known: sharing with padding need not be tried.
    """

    def refused(packed: bool) -> str | None:
        found = distributed.gathered(refuses_sharing(model, collator, examples, keys, packed))
        return next(filter(None, found), None)

    if (why := refuses_window(model, longest)) is not None:  # behind the cache
        return Sharing(why)
    if packs and refused(packed=True) is None:
        return Sharing(packed=True)
    return Sharing(None if is_known else refused(packed=False))


def refuses_sharing(
    model: Any, collator: Collator, examples: Sequence[Example], keys: Sequence[object], packed: bool = False
) -> str | None:
    """Why sharing is not exact with this model; None: it is.

    Log-likelihoods of two answers to a few questions, read behind shared and behind separate prompts, must be equal. In
    lower precision they may differ as those of separate prompts do that are read together and one by one.

    Args:
        keys: equal for examples about the same media.
        packed: whether prompts are read without padding.
    """
    tried = _tried_on(examples, keys)
    try:
        separate = _likelihoods(model, collator, tried, len(tried), share=False)
        shared = _likelihoods(model, collator, tried, len(tried), share=True, packed=packed)
        difference = _largest(separate, shared)
        allowed = EXACT
        if difference > EXACT and any(weight.dtype.itemsize < 4 for weight in model.parameters()):
            noise = _largest(separate, _likelihoods(model, collator, tried, 1, share=False))
            allowed = max(EXACT, min(3 * noise, MOST))
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        return f"{type(model).__name__} does not take it ({' '.join(str(error).split())[:160]})"
    return (
        None if difference <= allowed else f"log-likelihoods differ by {difference:.1e} from those of separate prompts"
    )


def _tried_on(examples: Sequence[Example], keys: Sequence[object]) -> list[Example]:
    """Two questions about each of two media where there are such, else the first few."""
    places: dict[object, list[int]] = {}
    for index, key in enumerate(keys):
        places.setdefault(key, []).append(index)
    rows = sorted(places.values(), key=lambda row: -min(len(row), 2))[:2]  # stable: of equals the first
    return [examples[index] for row in rows for index in row[:2]]


def _likelihoods(
    model: Any, collator: Collator, rows: Sequence[Example], batch_size: int, share: bool, packed: bool = False
) -> list[Ranking]:
    choices = [list(_WORDS)] * len(rows)
    size = batch_size * (1 if share else len(_WORDS))
    return rank_answers(
        model,
        collator,
        rows,
        [1] * len(rows),
        size,
        choices,
        description="",
        share_prompts=share,
        packed=packed,
        ahead=0,
    )


def _largest(one: Sequence[Ranking], other: Sequence[Ranking]) -> float:
    """The largest relative difference."""
    pairs = [(value, dict(b)[text]) for a, b in zip(one, other, strict=True) for text, value in a]
    return max(abs(a - b) / max(abs(a), 1.0) for a, b in pairs)
