"""Boxes in responses to referring expressions; a box is left, top, right, bottom throughout."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

Box = tuple[float, float, float, float]

THRESHOLDS = (0.1, 0.3, 0.5, 0.7, 0.9)
NO_BOX: Box = (0.0, 0.0, 0.0, 0.0)
_NUMBER = r"(-?\d+(?:\.\d+)?)"
_IN_BRACKETS = re.compile(r"\[\s*" + r"\s*,\s*".join([_NUMBER] * 4) + r"\s*\]")
_FOUR_NUMBERS = re.compile(r"[\s,]+".join([_NUMBER] * 4))
_FENCED = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL)
_KEYS = ("bbox_2d", "bbox", "box", "coordinates", "coord", "location", "position")
_GRID = 1000  # of models that count a picture's width and height so


def normalised_box(response: str) -> Box:
    """The first four plain decimals with commas in one pair of square brackets; without them `NO_BOX`."""
    found = _IN_BRACKETS.search(response)
    return _box(found.groups()) if found else NO_BOX


def boxes_in(response: str) -> list[Box]:
    """The boxes of JSON, by the names that models give them; else all that looks like four numbers."""
    fenced = _FENCED.search(response)
    try:
        found = list(_json_boxes(json.loads(fenced[1] if fenced else response)))
    except (ValueError, RecursionError):
        found = []
    return found or [_box(match) for match in _FOUR_NUMBERS.findall(response)]


def best_box(response: str, meant: Box, width: float, height: float) -> Box:
    """Of the boxes in a response, each taken for pixels and for thousandths of the picture, that nearest to the truth.

    Args:
        meant: the true box in pixels.
        width, height: of the picture in pixels.
    """
    x, y = width / _GRID, height / _GRID
    candidates = [
        box for found in boxes_in(response) for box in (found, (found[0] * x, found[1] * y, found[2] * x, found[3] * y))
    ]
    return max(candidates, key=lambda box: overlap(box, meant), default=NO_BOX)


def overlap(box: Box, other: Box) -> float:
    """Intersection over union; 0 for a box without an area, or with its sides in the wrong order."""
    sides = (min(box[2], other[2]) - max(box[0], other[0]), min(box[3], other[3]) - max(box[1], other[1]))
    common = max(0.0, sides[0]) * max(0.0, sides[1])
    union = _area(box) + _area(other) - common
    return common / union if common and union > 0 else 0.0


def paired(boxes: Sequence[Box], others: Sequence[Box]) -> list[tuple[Box, Box]]:
    """Boxes of both, each in one pair at most, those that overlap most first."""
    every = [(-overlap(a, b), i, j) for i, a in enumerate(boxes) for j, b in enumerate(others)]
    pairs, left, right = list[tuple[Box, Box]](), set[int](), set[int]()
    for _, i, j in sorted(every):
        if i not in left and j not in right:
            pairs.append((boxes[i], others[j]))
            left.add(i)
            right.add(j)
    return pairs


def box_values(name: str, box: Box, meant: Box) -> dict[str, float]:
    """Intersection over union, whether it reaches each threshold, and whether the box's centre is in the true one."""
    iou = overlap(box, meant)
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    is_inside = meant[0] <= x <= meant[2] and meant[1] <= y <= meant[3]
    hits = [float(iou >= threshold) for threshold in THRESHOLDS]
    return dict(zip(value_names(name), [iou, *hits, float(is_inside)], strict=True))


def value_names(name: str) -> list[str]:
    """The names of the values of `box_values`."""
    return [f"{name}_IoU", *(f"{name}_ACC@{threshold}" for threshold in THRESHOLDS), f"{name}_Center_ACC"]


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _box(numbers: Sequence[Any]) -> Box:
    left, top, right, bottom = (float(number) for number in numbers[:4])
    return left, top, right, bottom


def _json_boxes(value: Any) -> Iterator[Box]:
    """Lists of four numbers, within lists, under the names of boxes, and in objects within objects."""
    if isinstance(value, list):
        if len(value) == 4 and not any(isinstance(item, list | dict) for item in value):
            yield _box(value)
        else:
            for item in value:
                yield from _json_boxes(item)
    elif isinstance(value, dict):
        named = [value[key] for key in _KEYS if key in value]
        for item in named or value.values():
            yield from _json_boxes(item) if isinstance(item, list | dict) else ()
