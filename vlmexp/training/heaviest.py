"""Which batches of a training need the most memory, from token counts alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count as counted

import numpy as np

from vlmexp.training.sampling import EpochSampler
from vlmexp.training.token_batches import TokenBatches


@dataclass(frozen=True)
class TokenCounts:
    """How long the rows of a batch become.

    Attributes:
        lengths: tokens of each example.
        media: how many of them stand for media.
        keys: equal for examples that are packed behind one image; None: each example has a row of its own.
        packed: whether there is no padding.
    """

    lengths: Sequence[int] | np.ndarray
    media: Sequence[int] | np.ndarray
    keys: Sequence[object] | np.ndarray | None = None
    packed: bool = False

    def rows(self, batch: Sequence[int]) -> list[list[int]]:
        """The batch's examples, those of a row together."""
        if self.keys is None:
            return [[index] for index in batch]
        rows: dict[object, list[int]] = {}
        for index in batch:
            rows.setdefault(self.keys[index], []).append(index)
        return list(rows.values())

    def row_length(self, row: Sequence[int]) -> int:
        """Tokens of a row; for several questions at most so many, as they may share text before the image too."""
        return int(self.media[row[0]]) + sum(int(self.lengths[index] - self.media[index]) for index in row)

    def tokens(self, batch: Sequence[int]) -> int:
        """Tokens of a batch, with its padding."""
        rows = [self.row_length(row) for row in self.rows(batch)]
        return sum(rows) if self.packed else len(rows) * max(rows)

    def media_tokens(self, batch: Sequence[int]) -> int:
        """Media tokens of a batch, which tell how much the vision tower has to do."""
        return sum(self.media[row[0]] for row in self.rows(batch))

    def longest_first(self, batch: Sequence[int]) -> list[int]:
        """The same batch with the longest row first, so that its beginning is a heavy smaller batch."""
        rows = sorted(self.rows(batch), key=self.row_length, reverse=True)
        return [index for row in rows for index in sorted(row, key=self.lengths.__getitem__, reverse=True)]


def heaviest(counts: TokenCounts, batches: Iterable[Sequence[int]]) -> list[list[int]]:
    """The batch with the most tokens and, if another has over a tenth more media tokens, the one with the most."""
    longest: tuple[tuple[int, int], Sequence[int]] = ((0, 0), ())  # (tokens, media tokens), batch
    largest: tuple[tuple[int, int], Sequence[int]] = ((0, 0), ())  # (media tokens, tokens), batch
    for batch in batches:
        tokens, media = counts.tokens(batch), counts.media_tokens(batch)
        longest = max(longest, ((tokens, media), batch), key=lambda item: item[0])
        largest = max(largest, ((media, tokens), batch), key=lambda item: item[0])
    chosen = [longest[1]] if 10 * largest[0][0] <= 11 * longest[0][1] else [longest[1], largest[1]]
    return [counts.longest_first(batch) for batch in chosen if batch]


def training_batches(sampler: EpochSampler | TokenBatches, count: int) -> Iterator[list[int]]:
    """The first `count` batches of a training, those of all processes, epoch after epoch."""
    for epoch in counted() if sampler.batches_per_epoch else ():
        for batch in sampler.batches(epoch):
            if count == 0:
                return
            count -= 1
            yield batch


def stored_batches(examples: int, size: int) -> Iterator[list[int]]:
    """The batches of an evaluation, which keeps the stored order."""
    return (list(range(start, min(start + size, examples))) for start in range(0, examples, size))
