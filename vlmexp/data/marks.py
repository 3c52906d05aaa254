"""Marks in a text that are places of media: `<image>` and `<video>` (LLaVA's), `<image 1>` and `<video 1>` (MMMU's).

The marks of a kind are places where there are as many as media of it, in their order; numbered ones where each number
from 1 on is there, each at its first mark. A further mark of a number refers to what has been shown, so it is text. Any
other mark is text as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

Parts = tuple[tuple[str, str], ...]  # (type, text) in order; of an image or a video its number among them, from 1 on

MARK = re.compile(r"<(image|video)(?:[ _]?(\d{1,6}))?>")


def split_at_marks(text: str, media: Mapping[str, int]) -> Parts:
    """The text and the media that it has places for, in order; the text alone where no mark is a place.

    >>> split_at_marks("is <image> red?", {"image": 1})
    (('text', 'is '), ('image', '1'), ('text', ' red?'))

    Args:
        media: image or video -> how many there are.
    """
    if "<" not in text:
        return (("text", text),) if text else ()
    parts, end = [], 0
    for match, number in sorted(_places(text, media), key=lambda place: place[0].start()):
        parts += [("text", text[end : match.start()]), (match[1], str(number))]
        end = match.end()
    return tuple(part for part in (*parts, ("text", text[end:])) if part[1])


def in_front(parts: Parts) -> Parts | None:
    """The media, and behind them all text without the white space about their places; None if they stand elsewhere.

    >>> in_front((("image", "1"), ("text", "\\nis it red?")))
    (('image', '1'), ('text', 'is it red?'))
    """
    shown = tuple(part for part in parts if part[0] != "text")
    if not shown:
        return None
    words = "".join(text for kind, text in parts if kind == "text").lstrip()
    last = parts[-1][1] if parts and parts[-1][0] == "text" else ""
    is_in_front = last.lstrip() == words
    return (*shown, *((("text", words),) if words else ())) if is_in_front else None


def numbers_of(parts: Parts, kind: str) -> list[int]:
    """The numbers of the media of a kind, in the order of their places."""
    return [int(text) for type, text in parts if type == kind and text]


def _places(text: str, media: Mapping[str, int]) -> Iterator[tuple[re.Match[str], int]]:
    """The marks that are places, each with its medium's number."""
    for kind, count in media.items():
        marks = [match for match in MARK.finditer(text) if match[1] == kind]
        plain = [match for match in marks if not match[2]]
        numbered: dict[int, re.Match[str]] = {}
        for match in marks:
            if match[2]:
                numbered.setdefault(int(match[2]), match)
        if count and len(plain) == count:
            yield from zip(plain, range(1, count + 1), strict=True)
        elif count and numbered.keys() == set(range(1, count + 1)):
            yield from ((match, number) for number, match in numbered.items())
