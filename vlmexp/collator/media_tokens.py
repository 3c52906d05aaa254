"""How many tokens media add to a prompt, from their sizes alone.

One blank image of each size, and one blank video of each size and number of frames, is shown to the processor. Where a
processor writes media as text ("\\n\\n" around an image), the ends of that text may melt into the text beside it; that
depends on the prompt and not on the size, so the two are counted apart.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from vlmexp.collator.batch import Collator
from vlmexp.collator.encode import special_token_arguments, tokenize
from vlmexp.collator.media import ClipShape, Shape, blank_arguments
from vlmexp.collator.said import placeholders
from vlmexp.data.example import Example
from vlmexp.errors import UserError

_SMALL = 64  # pixels


class RefusedMedia(UserError):
    """The model's processor does not take such media."""


class MediaTokens:
    """Counts media tokens for a collator; every size and surrounding is counted once."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator
        self._more: dict[Shape, int] = {}  # than the same media at a small size
        self._small: dict[tuple[Shape, tuple[str, ...]], int] = {}
        self._melts: dict[Shape, bool] = {}  # by small shape: whether media begin or end as text
        self._one_kind = _gives_one_kind(collator.processor)
        self._timed: bool | None = None  # whether the processor writes the times of frames, so that they count as well

    def __call__(self, example: Example, shape: Shape) -> int:
        """How many tokens media of these sizes add to the example's raw prompt.

        Raises:
            RefusedMedia: the processor refuses a size, or images beside videos.
        """
        if not shape:
            return 0
        if self._one_kind and example.images and example.videos:
            raise RefusedMedia(f"{_place(example)}: the model's processor takes images or videos, not both at once.")
        if self._timed is None and any(isinstance(size, ClipShape) for size in shape):
            self._timed = len(self._expanded(example, shape)) != len(self._expanded(example, _untimed(shape)))
        shape = shape if self._timed else _untimed(shape)
        small = tuple(_small(size) for size in shape)
        if small not in self._melts:
            self._melts[small] = self._begins_or_ends_as_text(example, small)
        key = (small, self._surroundings(example) if self._melts[small] else ())
        if key not in self._small:
            self._small[key] = len(self._expanded(example, small)) - len(self._raw(example))
        if shape not in self._more:
            self._more[shape] = len(self._expanded(example, shape)) - len(self._raw(example)) - self._small[key]
        return self._small[key] + self._more[shape]

    def _raw(self, example: Example) -> list[int]:
        return tokenize(self._collator.processor, [self._collator.template.prompt(example).text])[0]

    def _expanded(self, example: Example, shape: Shape) -> list[int]:
        collator, text = self._collator, self._collator.template.prompt(example).text
        options = special_token_arguments(collator.processor, text)
        try:
            inputs = collator.processor(
                text=[collator.template.processor_text(text)], return_tensors="pt", **blank_arguments(shape), **options
            )
        except (ValueError, RuntimeError, ZeroDivisionError) as error:  # whatever a resize to nothing leads to
            raise RefusedMedia(
                f"{_place(example)}: the model's processor takes no media of {' and '.join(map(_described, shape))} "
                f"({' '.join(str(error).split())})."
            ) from None
        ids: list[int] = inputs["input_ids"][0].tolist()
        return ids

    def _begins_or_ends_as_text(self, example: Example, shape: Shape) -> bool:
        tokenizer, text = self._collator.processor.tokenizer, self._collator.template.prompt(example).text
        marks = {match[0] for match in placeholders(self._collator.processor).finditer(text)}
        vocabulary = tokenizer.get_vocab()
        if not marks <= vocabulary.keys():
            return True
        ids = {vocabulary[mark] for mark in marks}
        control = self._collator.template.control.ids  # other added tokens, such as line breaks, may melt into text
        raw, expanded = self._raw(example), self._expanded(example, shape)
        places = [index for index, token in enumerate(raw) if token in ids]
        return not {expanded[places[0]], expanded[places[-1] - len(raw)]} <= control

    def _surroundings(self, example: Example) -> tuple[str, ...]:
        """White space and one more character before and behind each placeholder."""
        text, mark = self._collator.template.prompt(example).text, placeholders(self._collator.processor).pattern
        found = re.finditer(rf"(\S?\s*)(?:{mark})(?=(\s*\S?))", text)
        return tuple(part for match in found for part in match.groups())


def _gives_one_kind(processor: Any) -> bool:
    """Whether images and videos become inputs of the same names, so that one would take the place of the other."""
    parts = [getattr(processor, name, None) for name in ("image_processor", "video_processor")]
    images, videos = (set(part.model_input_names if part is not None else ()) for part in parts)
    return not images.isdisjoint(videos)


def _place(example: Example) -> str:
    return example.place(*(role for role, media in (("image", example.images), ("video", example.videos)) if media))


def _described(size: tuple[int, int] | ClipShape) -> str:
    if isinstance(size, ClipShape):
        return f"{len(size.numbers)} frame{'s' * (len(size.numbers) > 1)} of {size.width} x {size.height} pixels"
    return f"{size[0]} x {size[1]} pixels"


def _small(size: tuple[int, int] | ClipShape) -> tuple[int, int] | ClipShape:
    if isinstance(size, ClipShape):
        return dataclasses.replace(size, height=_SMALL, width=_SMALL)
    return _SMALL, _SMALL


def _untimed(shape: Shape) -> Shape:
    """The shape with the same times for all videos of as many frames; they are much longer than real ones."""
    return tuple(
        dataclasses.replace(size, numbers=tuple(10_000_000 + n for n in range(len(size.numbers))), fps=1.0)
        if isinstance(size, ClipShape)
        else size
        for size in shape
    )
