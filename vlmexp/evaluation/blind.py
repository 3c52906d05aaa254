"""Does the model look? The same questions about images that do not belong to them.

A score that stays is what the questions alone give away (Goyal et al., https://arxiv.org/abs/1612.00837).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image

from vlmexp.data.example import Example
from vlmexp.data.images import image_size
from vlmexp.errors import UserError


def with_other_images(examples: Sequence[Example], seed: int, shown: Callable[[Path], object] = Path) -> list[Example]:
    """Each example with the images and videos of another one that show something else (and as many of them).

    Examples without any, or without a partner, stay as they are.

    Args:
        shown: what a file shows: equal for files that show the same.
    """
    rng = random.Random(seed)

    def content(example: Example) -> tuple[tuple[object, ...], tuple[object, ...]]:
        return tuple(map(shown, example.images)), tuple(map(shown, example.videos))

    # Number of images and of videos -> what they show -> the first example's that shows it.
    first: dict[tuple[int, int], dict[object, Example]] = {}
    for example in examples:
        first.setdefault((len(example.images), len(example.videos)), {}).setdefault(content(example), example)
    # Media that one of their own questions needs smaller are shown so; larger ones might not fit.
    limits = {(e.images, e.videos): e.media_limit for e in examples if e.media_limit is not None}
    result = []
    for example in examples:
        others = first[len(example.images), len(example.videos)]
        if not (example.images or example.videos) or len(others) < 2:
            result.append(example)
            continue
        # A random other entry: skip the example's own place in the list.
        own, drawn = list(others).index(content(example)), rng.randrange(len(others) - 1)
        other = list(others.values())[drawn + (drawn >= own)]
        limit = limits.get((other.images, other.videos))
        result.append(dataclasses.replace(example, images=other.images, videos=other.videos, media_limit=limit))
    return result


def with_blank_images(examples: Sequence[Example], folder: Path) -> list[Example]:
    """Each example with white images of the same sizes, which are written to `folder`.

    Raises:
        UserError: an example has a video, which is not replaced.
    """
    if any(example.videos for example in examples):
        raise UserError("evaluation.blind=blank is for images only, and there are videos: use shuffle or none.")
    folder.mkdir(parents=True, exist_ok=True)

    def blank(image: Path) -> Path:
        width, height = image_size(image)
        path = folder / f"white-{width}x{height}.png"
        if not path.exists():
            Image.new("RGB", (width, height), "white").save(path)
        return path

    return [dataclasses.replace(example, images=tuple(map(blank, example.images))) for example in examples]
