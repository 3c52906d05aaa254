"""Does the model look? The same questions about images that do not belong to them.

A score that stays is what the questions alone give away (Goyal et al., https://arxiv.org/abs/1612.00837).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vlmexp.data.example import Example, image_size


def with_other_images(examples: Sequence[Example], seed: int) -> list[Example]:
    """Each example with the images of another one that has different images (and as many of them).

    Examples without images, or without a partner, stay as they are.
    """
    rng = random.Random(seed)
    by_count: dict[int, list[tuple[Path, ...]]] = {}
    for images in dict.fromkeys(example.images for example in examples):
        by_count.setdefault(len(images), []).append(images)
    result = []
    for example in examples:
        others = by_count[len(example.images)]
        if not example.images or len(others) < 2:
            result.append(example)
            continue
        # A random other entry: skip the example's own place in the list.
        own, drawn = others.index(example.images), rng.randrange(len(others) - 1)
        result.append(dataclasses.replace(example, images=others[drawn + (drawn >= own)]))
    return result


def with_blank_images(examples: Sequence[Example], folder: Path) -> list[Example]:
    """Each example with white images of the same sizes, which are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)

    def blank(image: Path) -> Path:
        width, height = image_size(image)
        path = folder / f"white-{width}x{height}.png"
        if not path.exists():
            Image.new("RGB", (width, height), "white").save(path)
        return path

    return [dataclasses.replace(example, images=tuple(map(blank, example.images))) for example in examples]
