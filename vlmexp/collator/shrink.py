"""Smaller images for an example that is too long."""

from __future__ import annotations

import dataclasses

from vlmexp.collator.batch import Collator
from vlmexp.collator.media import ClipShape, media_shape
from vlmexp.collator.media_tokens import MediaTokens, RefusedMedia
from vlmexp.data.example import Example
from vlmexp.errors import UserError

SMALLEST = 32  # pixels of the longest side, below which there is nothing to be seen


def shrunk(collator: Collator, media_tokens: MediaTokens, example: Example, excess: int) -> Example:
    """The example with its images and frames as large as they can be for `excess` tokens less than now.

    All of them keep their aspect and get the same limit for their longest side; one pixel more would be too much, or
    of a shape that the processor refuses.

    Raises:
        UserError: there are no media, or they are not small enough at SMALLEST pixels, either.
    """

    def at(limit: int) -> Example:
        return dataclasses.replace(example, media_limit=limit)

    def tokens(candidate: Example) -> int:
        return media_tokens(candidate, media_shape(candidate, collator.media))

    now = tokens(example)
    if not now:
        raise UserError(
            f"Example {example.id} is {excess} tokens longer than collator.max_length and has no image to shrink. "
            "Raise collator.max_length, or set collator.overlong to drop or shorten_text."
        )
    fits, too_large = SMALLEST, _longest_side(collator, example)
    least = tokens(at(SMALLEST)) if too_large > SMALLEST else now
    if least > now - excess:
        raise UserError(
            f"Example {example.id} is {excess} tokens longer than collator.max_length, and with images of "
            f"{min(SMALLEST, too_large)} pixels still {excess - now + least}: many models make as many tokens of a "
            "small image as of a large one. Raise collator.max_length, or set collator.overlong to drop or "
            "shorten_text."
        )
    while too_large - fits > 1:
        middle = (fits + too_large) // 2
        try:
            is_enough = tokens(at(middle)) <= now - excess
        except RefusedMedia:  # of a thin strip that becomes a line
            is_enough = False
        if is_enough:
            fits = middle
        else:
            too_large = middle
    return at(fits)


def _longest_side(collator: Collator, example: Example) -> int:
    """Pixels of the longest side of all images and frames, as they are shown now."""
    sizes = media_shape(example, collator.media)
    return max(max(s.width, s.height) if isinstance(s, ClipShape) else max(s) for s in sizes)
