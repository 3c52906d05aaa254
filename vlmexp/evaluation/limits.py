"""How long an answer may become, worked out from the answers that the data set accepts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 16  # tokens, for answers in other words than the accepted ones
MOST = 1024  # tokens that a few long answers can ask for: a model that finds no end takes them all, in every batch
USUAL = 0.99  # of the answers decide beyond that


@dataclass(frozen=True)
class Limit:
    """The longest answer that is generated.

    Attributes:
        tokens: its end included.
        source: how it was found, for the result.
        note: which accepted answers are longer than that; None: none is.
    """

    tokens: int
    source: str
    note: str | None = None


def limit_of(lengths: Sequence[int] | np.ndarray, splits: Sequence[str]) -> Limit:
    """What the longest accepted answer needs and a quarter more; where that is very much, what most of them need.

    Args:
        lengths: tokens of the accepted answers, their ends included.
        splits: where they are from.
    """
    longest = int(max(lengths, default=0))
    tokens = max(LEAST, _with_room(longest))
    if tokens > MOST:
        usual = int(np.quantile(lengths, USUAL, method="higher"))
        tokens = min(tokens, max(MOST, _with_room(usual)))
    source = f"the longest accepted answer of {' and '.join(splits)} takes {longest:,} tokens"
    longer = int(np.sum(np.asarray(lengths) > tokens))
    if not longer:
        return Limit(tokens, source)
    return Limit(
        tokens,
        source,
        f"Answers are generated up to {tokens:,} tokens, and {longer:,} of {len(lengths):,} accepted ones are longer, "
        f"up to {longest:,}: evaluation.max_new_tokens={longest} waits for them (and as long where no end comes).",
    )


def _with_room(tokens: int) -> int:
    return tokens + max(8, tokens // 4)
