"""Which tokens of a prompt the assistant has said, where media have been expanded since.

    raw        USER : <image> what ? ASSISTANT : red </s> USER : <image> and here ? ASSISTANT :
    said                                         [      ]
    expanded   USER : <image> <image> <image> what ? ASSISTANT : red </s> USER : ...

The text between two placeholders is the same in both, so each such text is looked for behind the one before it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_EDGE = 3  # tokens next to media that may differ: white space that melts, or a mark that moves behind a frame's time


def said_tokens(
    said: Sequence[tuple[int, int]],
    offsets: Sequence[tuple[int, int]],
    media: Sequence[tuple[int, int]],
    raw: Sequence[int],
    expanded: Sequence[int],
) -> tuple[range, ...]:
    """Ranges of the expanded tokens that lie wholly in the given ranges of characters.

    Args:
        said: first character of each range, and the one behind its last.
        offsets: the same of each raw token.
        media: the same of each placeholder; none is in a range of `said`.
        raw: token ids of the text.
        expanded: token ids of the text with each placeholder expanded.
    """
    ranges = []
    for begin, end in said:
        inside = [index for index, (a, b) in enumerate(offsets) if begin <= a and b <= end]
        if inside:
            ranges.append(range(inside[0], inside[-1] + 1))
    if list(raw) == list(expanded):
        return tuple(ranges)
    texts = _texts_between(offsets, media)
    for edge in range(_EDGE + 1):
        shifts = _shifts(texts, raw, expanded, edge)
        if shifts is not None and all(turn[0] in shifts and turn[-1] in shifts for turn in ranges):
            return tuple(range(turn[0] + shifts[turn[0]], turn[-1] + 1 + shifts[turn[0]]) for turn in ranges)
    raise RuntimeError("the assistant's turns cannot be found among the expanded tokens")


def _texts_between(offsets: Sequence[tuple[int, int]], media: Sequence[tuple[int, int]]) -> list[range]:
    """The runs of raw tokens between placeholders, empty ones included."""
    places = [index for index, (a, b) in enumerate(offsets) if any(a < end and start < b for start, end in media)]
    return [range(before + 1, after) for before, after in pairwise([-1, *places, len(offsets)])]


def _shifts(texts: Sequence[range], raw: Sequence[int], expanded: Sequence[int], edge: int) -> dict[int, int] | None:
    """How far each raw token of a text has moved; None if some text is not found.

    Args:
        edge: how many tokens at a text's ends may differ where it meets media.
    """
    shifts: dict[int, int] = {}
    position = 0
    for number, text in enumerate(texts):
        is_first, is_last = number == 0, number == len(texts) - 1
        core = range(text.start + (0 if is_first else edge), text.stop - (0 if is_last else edge))
        if not core:
            continue
        wanted = list(raw[core.start : core.stop])
        if is_first:
            found = 0 if list(expanded[: len(wanted)]) == wanted else None
        elif is_last:
            start = len(expanded) - len(wanted)
            found = start if start >= position and list(expanded[start:]) == wanted else None
        else:
            found = _find(wanted, expanded, position)
        if found is None:
            return None
        shifts.update(dict.fromkeys(core, found - core.start))
        position = found + len(wanted)
    return shifts


def _find(wanted: list[int], tokens: Sequence[int], start: int) -> int | None:
    places = range(start, len(tokens) - len(wanted) + 1)
    return next((i for i in places if tokens[i] == wanted[0] and list(tokens[i : i + len(wanted)]) == wanted), None)


def placeholders(processor: Any) -> re.Pattern[str]:
    """Matches what stands for an image or a video in a prompt as the chat template writes it.

    It need not be a token of its own: some processors replace it before the tokenizer sees the text.
    """
    names = ("image_token", "video_token", "boi_token")
    found = {getattr(owner, name, None) for owner in (processor, processor.tokenizer) for name in names}
    return re.compile("|".join(sorted(re.escape(mark) for mark in found if isinstance(mark, str) and mark)))
