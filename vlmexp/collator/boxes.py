"""Boxes in the words of a model: where something is in the picture as the model sees it.

A data set has boxes in pixels of a picture; a model speaks of them in a notation that it has learnt, about the picture
that reaches it: after `resize_mode` and, where it counts pixels, after its processor's own resizing. A `View` goes both
ways, so what is trained and what is scored agree. Notations as published:

- Qwen2-VL: `<|box_start|>(x1,y1),(x2,y2)<|box_end|>` in thousandths (https://arxiv.org/abs/2409.12191, section 2.2);
- Qwen2.5-VL: JSON with `bbox_2d` in pixels of the resized picture, the last of which is its width or height less one;
  Qwen3-VL: the same in thousandths (https://github.com/QwenLM/Qwen3-VL, qwen-vl-finetune/tools/process_bbox.ipynb and
  issues 721, 1486);
- InternVL: `<box>[[x1, y1, x2, y2]]</box>` in thousandths
  (https://internvl.readthedocs.io/en/latest/get_started/chat_data_format.html);
- PaliGemma: `<locDDDD>` four times, top, left, bottom, right, as the nearest of 0 to 1023
  (https://github.com/google-research/big_vision, pp/proj/paligemma/segmentation.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from PIL import Image

from vlmexp.data.boxes import Box
from vlmexp.data.example import Example
from vlmexp.data.images import ImageOptions, final_size, image_size, shown_part
from vlmexp.errors import UserError

UNITS = ("shares", "thousandths", "loc", "pixels")
SIDES = ("left", "top", "right", "bottom")
BOXES = "{boxes}"
_STEPS = {"shares": 1, "thousandths": 1000, "loc": 1023}  # of the whole width or height
_WRITTEN = {"shares": "{:.3f}", "loc": "{:04.0f}"}
_SIDE = re.compile(f"{{({'|'.join(SIDES)})}}")
_NUMBER = r"-?\d+(?:\.\d+)?"
_ONWARDS = r"(?:\s*[)\]]\s*,?\s*[(\[]\s*|[\s,]+)"  # from a number to the next: `1, 2` or `1), (2`
_NUMBERS = re.compile(rf"(?<![\d.]){_NUMBER}(?:{_ONWARDS}{_NUMBER})*(?!\.?\d)")
_BEYOND = 2.0  # pixels that boxes may reach out of their pictures: some are rounded, some count from 1
_TRIED = (64, 48)  # pixels


class UnusableBox(UserError):
    """A box that is not in its picture, or of which the model sees nothing."""


@dataclass(frozen=True)
class Notation:
    """How a model writes boxes.

    Attributes:
        unit: `shares` of the picture's width and height from 0 to 1, `thousandths` of them, `loc`, whole numbers from 0
            to 1023, or `pixels` of the picture after the processor's own resizing.
        box: the text of a box, with its sides as {left}, {top}, {right} and {bottom}.
        around: what stands around it; {boxes} is its place.
        several: the same for two boxes or more; None: as for one.
        between: what stands between two boxes.
    """

    unit: str = "shares"
    box: str = "[{left}, {top}, {right}, {bottom}]"
    around: str = BOXES
    several: str | None = None
    between: str = ", "

    def text(self, boxes: Sequence[Box], pixels: tuple[int, int]) -> str:
        """The text of boxes, which are shares of a picture of this width and height in pixels."""
        around = self.around if len(boxes) == 1 or self.several is None else self.several
        return around.replace(BOXES, self.between.join(self._written(box, pixels) for box in boxes))

    def boxes(self, text: str, pixels: tuple[int, int]) -> list[Box]:
        """The boxes in a text, as shares; where none is written as it should be, numbers by fours if none is left."""
        found = self._pattern.findall(text) or [four for match in _NUMBERS.findall(text) for four in _fours(match)]
        order, steps = _SIDE.findall(self.box), self._steps(pixels)
        return [_box({side: float(number) for side, number in zip(order, row, strict=True)}, steps) for row in found]

    def _steps(self, pixels: tuple[int, int]) -> tuple[int, int]:
        return pixels if self.unit == "pixels" else (_STEPS[self.unit],) * 2

    def _written(self, box: Box, pixels: tuple[int, int]) -> str:
        values, steps = list[float](), self._steps(pixels)
        for share, whole in zip(box, (*steps, *steps), strict=True):
            value = share * whole if self.unit == "shares" else round(share * whole)
            values.append(min(value, whole - 1) if self.unit == "pixels" else value)
        shown = dict(zip(SIDES, map(_WRITTEN.get(self.unit, "{:.0f}").format, values), strict=True))
        return _SIDE.sub(lambda match: shown[match[1]], self.box)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        """Matches a box, with any white space where there is some and around the numbers."""
        pieces = [r"\s+" if piece.isspace() else _spaced(piece) for piece in _SIDE.split(self.box)[::2]]
        return re.compile(rf"\s*(?<![\d.])({_NUMBER})\s*".join(pieces))


@dataclass(frozen=True)
class View:
    """What a model sees of a picture, and how it speaks of it.

    Attributes:
        shown: the part of the picture that is left by `resize_mode`, in the picture's pixels.
        pixels: width and height of what the model sees, if its notation counts them; else of what its processor gets.
    """

    notation: Notation
    shown: Box
    pixels: tuple[int, int]

    def text(self, boxes: Sequence[Box]) -> str:
        """What a model should say of boxes in pixels of the picture; empty if it sees none of them."""
        seen = [share for box in boxes if (share := self.seen(box)) is not None]
        return self.notation.text(seen, self.pixels) if seen else ""

    def boxes(self, text: str) -> list[Box]:
        """The boxes of which a model speaks, in pixels of the picture."""
        left, top, right, bottom = self.shown
        width, height = right - left, bottom - top
        return [
            (left + a * width, top + b * height, left + c * width, top + d * height)
            for a, b, c, d in self.notation.boxes(text, self.pixels)
        ]

    def seen(self, box: Box) -> Box | None:
        """What is seen of a box, as shares of what is seen of the picture; None: nothing."""
        left, top, right, bottom = self.shown
        width, height = right - left, bottom - top
        shares = ((box[0] - left) / width, (box[1] - top) / height, (box[2] - left) / width, (box[3] - top) / height)
        a, b, c, d = (min(max(share, 0.0), 1.0) for share in shares)
        return (a, b, c, d) if a < c and b < d else None


class Views:
    """The views of examples for one processor."""

    def __init__(self, notation: Notation, processor: Any) -> None:
        self.notation, self._processor = notation, processor
        self._resized: dict[tuple[int, int], tuple[int, int]] = {}

    def __call__(self, example: Example, options: ImageOptions) -> View:
        """The view of an example's one picture, from its file's header.

        Raises:
            UnusableBox: a box is not in the picture.
            UserError: the notation counts pixels, and the processor does not tell to which size it resizes.
        """
        size = image_size(example.images[0])
        for box in example.boxes:
            if min(box) < -_BEYOND or box[2] > size[0] + _BEYOND or box[3] > size[1] + _BEYOND:
                raise UnusableBox(
                    f"{example.place('box')}: the box from {box[0]:g}, {box[1]:g} to {box[2]:g}, {box[3]:g} reaches "
                    f"out of its picture, which has {size[0]} x {size[1]} pixels as it is shown. Boxes are in pixels "
                    "of it; dataset.box_form says whether they end with width and height (xywh) or a corner (xyxy)."
                )
        return View(self.notation, shown_part(size, options), self.resized(final_size(size, options)))

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height that the processor gives a picture of this size; the same where they do not count."""
        if self.notation.unit != "pixels":
            return size
        if size not in self._resized:
            self._resized[size] = self._asked(size)
        return self._resized[size]

    def _asked(self, size: tuple[int, int]) -> tuple[int, int]:
        part = self._processor.image_processor
        made: Mapping[str, Any] = part(images=[Image.new("RGB", size)], return_tensors="pt")
        if "image_grid_thw" not in made:
            raise UserError(
                f"model.boxes.unit=pixels: {type(part).__name__} does not tell to which size it resizes a picture: "
                f"choose {', '.join(UNITS[:-1])}."
            )
        _, rows, columns = made["image_grid_thw"][0].tolist()
        return columns * part.patch_size, rows * part.patch_size


def cuts_off(part: Any) -> bool:
    """Whether an image processor leaves out the ends of a long picture: white ones change nothing."""
    black = Image.new("RGB", (256, 64))
    ended = Image.new("RGB", (256, 64), "white")
    ended.paste(black.crop((16, 0, 240, 64)), (16, 0))
    one, other = (part(images=[image], return_tensors="pt") for image in (black, ended))
    return all(torch.equal(one[name], other[name]) for name in one if isinstance(one[name], torch.Tensor))


def check_notation(views: Views, plain: Any) -> None:
    """Raise a UserError for a notation that cannot be used with a processor.

    Args:
        plain: what becomes of a text before it is learnt.
    """
    text = views.notation.text([(0.0, 0.0, 0.5, 0.5)] * 2, views.resized(_TRIED))
    if plain(text) != text:
        raise UserError(
            f"model.boxes: {text!r} holds what this model takes for an image or for the end of a turn; write boxes "
            "without it."
        )


def _spaced(text: str) -> str:
    """A pattern of a text, with any white space where it has some."""
    return r"\s*".join(map(re.escape, text.split()))


def _fours(text: str) -> list[list[str]]:
    """Numbers in a row by fours; none where some would be left over."""
    numbers = re.findall(_NUMBER, text)
    return [] if len(numbers) % 4 else [numbers[start : start + 4] for start in range(0, len(numbers), 4)]


def _box(sides: Mapping[str, float], steps: tuple[int, int]) -> Box:
    width, height = steps
    return sides["left"] / width, sides["top"] / height, sides["right"] / width, sides["bottom"] / height
