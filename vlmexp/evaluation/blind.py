"""Does the model look? The same questions about images that do not belong to them.

A score that stays is what the questions alone give away (Goyal et al., https://arxiv.org/abs/1612.00837).
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vlmexp.data.example import Example
from vlmexp.data.images import image_size
from vlmexp.errors import UserError


def with_other_images(examples: Sequence[Example], seed: int) -> list[Example]:
    """Each example with the images and videos of another one that has different ones (and as many of them).

    Examples without any, or without a partner, stay as they are.
    """
    rng = random.Random(seed)
    by_count: dict[tuple[int, int], list[tuple[tuple[Path, ...], tuple[Path, ...]]]] = {}
    for images, videos in dict.fromkeys((example.images, example.videos) for example in examples):
        by_count.setdefault((len(images), len(videos)), []).append((images, videos))
    # Media that one of their own questions needs smaller are shown so; larger ones might not fit.
    limits = {(e.images, e.videos): e.media_limit for e in examples if e.media_limit is not None}
    result = []
    for example in examples:
        others = by_count[len(example.images), len(example.videos)]
        if not (example.images or example.videos) or len(others) < 2:
            result.append(example)
            continue
        # A random other entry: skip the example's own place in the list.
        own, drawn = others.index((example.images, example.videos)), rng.randrange(len(others) - 1)
        images, videos = others[drawn + (drawn >= own)]
        limit = limits.get((images, videos))
        result.append(dataclasses.replace(example, images=images, videos=videos, media_limit=limit))
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
