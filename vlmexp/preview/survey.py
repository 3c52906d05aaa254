"""Lengths and sizes of many examples, from their text and their files' headers: no pixel is decoded."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import Fitted, fit
from vlmexp.collator.media import ClipShape, MediaOptions, Shape, media_key, media_shape
from vlmexp.data.example import Example
from vlmexp.data.images import MediaError
from vlmexp.errors import UserError

NO_LIMIT = sys.maxsize


@dataclass(frozen=True)
class Survey:
    """What is known of the rows that were counted.

    Attributes:
        rows: place of each row in its split.
        ids: of the same rows.
        lengths: tokens of the same rows, media and answer included, before the overlong policy.
        media_lengths: how many of these its media add, with the words that a processor writes around them.
        sizes: (width, height) in pixels of a file -> how many distinct media files have it.
        clips: distinct videos among them.
        bad: what is wrong with rows that could not be counted.
        found: what is to be said about the texts of the rows, see vlmexp.collator.remarks.
    """

    rows: list[int]
    ids: list[str]
    lengths: list[int]
    media_lengths: list[int]
    sizes: Counter[tuple[int, int]]
    clips: int
    bad: list[str]
    found: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int32))

    @property
    def longest(self) -> int:
        """The place of the longest row in the split."""
        return self.rows[max(range(len(self.rows)), key=self.lengths.__getitem__)]

    def over(self, max_length: int) -> list[tuple[str, int, int]]:
        """(id, tokens, media tokens) of the rows that are longer, the longest first."""
        found = zip(self.ids, self.lengths, self.media_lengths, strict=True)
        return sorted((row for row in found if row[1] > max_length), key=lambda row: -row[1])


def take_survey(collator: Collator, examples: Sequence[Example], rows: Sequence[int], skip_bad: bool) -> Survey:
    """Count examples.

    Args:
        rows: places of those to count, ascending.
        skip_bad: list rows whose media cannot be read instead of raising for the first.

    Raises:
        MediaError: a file's header cannot be read.
        UserError: the processor refuses a size, or no row can be counted.
    """
    as_stored = MediaOptions(video=collator.media.video)  # without resizing
    shapes: dict[tuple[str, ...], Shape | MediaError] = {}
    kept, ids, bad = list[int](), list[str](), list[str]()
    for row in rows:
        example = examples[row]
        key = media_key(example)
        if key not in shapes:
            try:
                shapes[key] = media_shape(example, as_stored)
            except MediaError as error:
                if not skip_bad:
                    raise
                shapes[key] = error
        if isinstance(shape := shapes[key], MediaError):
            bad.append(str(shape))
        else:
            kept.append(row)
            ids.append(example.id)
    if not kept:
        raise UserError(f"None of the {len(rows)} counted rows can be used, the first by this: {bad[0]}")
    readable = Fitted(examples, np.array(kept), {})
    measured = fit(collator, readable, NO_LIMIT, "error", refused_share=1.0 if skip_bad else 0.0)
    refused = list(measured.refused.values())
    if not len(measured):
        raise UserError(f"None of the {len(rows)} counted rows can be used, the first by this: {refused[0]}")
    files = [file for shape in shapes.values() if not isinstance(shape, MediaError) for file in shape]
    return Survey(
        rows=[kept[index] for index in measured.kept],
        ids=[ids[index] for index in measured.kept],
        lengths=measured.lengths.tolist(),
        media_lengths=measured.media_lengths.tolist(),
        sizes=Counter((file.width, file.height) if isinstance(file, ClipShape) else file for file in files),
        clips=sum(isinstance(file, ClipShape) for file in files),
        bad=[*bad, *refused],
        found=measured.found,
    )


def histogram(values: Sequence[int], bins: int = 48) -> list[tuple[int, int, int]]:
    """(first, last, count) of each bin: whole numbers, bins of one width, from the smallest to the largest value.

    >>> histogram([3, 4, 4, 9], bins=2)
    [(3, 6, 3), (7, 10, 1)]
    """
    if not values:
        return []
    least = min(values)
    width = -(-(max(values) - least + 1) // bins)
    counts = Counter((value - least) // width for value in values)
    return [(least + n * width, least + (n + 1) * width - 1, counts[n]) for n in range(max(counts) + 1)]
