"""RefCOCO's rows as questions for a box, in the two forms in which models are asked."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from typing import Any

FORMS = ("normalised", "pixels")


def refcoco_rows(rows: Iterable[dict[str, Any]], form: str) -> Iterator[dict[str, Any]]:
    """Rows with `text`, `box` and, for answers in pixels, `image_width` and `image_height`.

    Published rows have all texts that refer to a region in `answer` and its `bbox` as [left, top, width, height] in
    pixels. `normalised` gives a row for each text, whose box is [left, top, right, bottom] as shares of the picture, in
    single precision as published numbers were made; `pixels` one row, with all texts in quotes.
    """
    import numpy as np

    for row in rows:
        left, top, width, height = row["bbox"]
        columns, lines = _size(row)
        box = [left, top, left + width, top + height]
        if form == "pixels":
            text = ", ".join(f'"{text}"' for text in row["answer"])
            yield row | {"text": text, "box": json.dumps(box), "image_width": columns, "image_height": lines}
            continue
        shares = np.asarray(box) / [columns, lines, columns, lines]
        told = json.dumps([float(value) for value in shares.astype(np.float32)])
        for number, text in enumerate(row["answer"]):
            yield row | {"question_id": f"{row['question_id']}-{number}", "text": text, "box": told}


def _size(row: dict[str, Any]) -> tuple[int, int]:
    """The picture's width and height, read from its file's head where the row does not tell."""
    if "image_width" in row:
        return row["image_width"], row["image_height"]
    from PIL import Image

    with Image.open(io.BytesIO(row["image"]["bytes"])) as image:
        return image.size
