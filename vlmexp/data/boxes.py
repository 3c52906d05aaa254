"""Boxes in pictures as data sets have them: in pixels of the picture as it is shown.

Pictures are turned upright when they are read, and a box is one of the upright picture, as people who drew it have seen
it. COCO's boxes are so in any case: its pictures have no orientation left that would have to be undone.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vlmexp.data.literals import parsed

Box = tuple[float, float, float, float]  # left, top, right, bottom


def boxes_in(value: Any, form: str) -> list[list[float]]:
    """The boxes in a value, each as left, top, right and bottom: four numbers, a list of such, or the text of either.

    Args:
        form: `xywh`, left, top, width and height as in COCO, or `xyxy`, left, top, right and bottom.

    >>> boxes_in([10, 20, 30, 40], "xywh"), boxes_in("[[10, 20, 30, 40]]", "xyxy")
    ([[10.0, 20.0, 40.0, 60.0]], [[10.0, 20.0, 30.0, 40.0]])

    Raises:
        ValueError: there is anything else, or a box has no area.
    """
    found = parsed(value) if isinstance(value, str) and value.strip() else value
    try:
        numbers = np.array([] if found is None or isinstance(found, str) else found, np.float64)
    except (ValueError, TypeError):
        numbers = np.zeros(1)
    if numbers.size == 0 and not (isinstance(value, str) and value.strip()):
        return []
    if numbers.ndim not in (1, 2) or numbers.shape[-1] != 4 or not np.isfinite(numbers).all():
        raise ValueError(f"{str(value)[:60]!r} is no box of four numbers and no list of such")
    return [_corners(row, form) for row in numbers.reshape(-1, 4).tolist()]


def _corners(row: list[float], form: str) -> list[float]:
    left, top, right, bottom = row
    if form == "xywh":
        right, bottom = left + right, top + bottom
    if right <= left or bottom <= top:
        given = ", ".join(f"{number:g}" for number in row)
        raise ValueError(f"[{given}] has no area, read as dataset.box_form={form}")
    return [left, top, right, bottom]
