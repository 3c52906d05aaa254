"""Data sets of a shape, written to folders: pictures and questions without a meaning, which cost what real ones do."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vlmexp.files import write_jsonl

WORDS = "what color is the shape does this image contain a circle how many are there is it red or blue".split()
LONG = 10  # times as many words as in a short question


@dataclass(frozen=True)
class Shape:
    """What the rows of a data set look like.

    Attributes:
        questions: about an image, at least and at most.
        sides: pixels of an image's sides, at least and at most, in steps of 16.
        long: share of the questions that have ten times as many words.
    """

    title: str
    questions: tuple[int, int]
    sides: tuple[int, int]
    long: float = 0.0


SMALL = Shape("small images of one size, 64 px, one question each", (1, 1), (64, 64))
VARIED = Shape("varied: 112 to 448 px, one question each, every fourth ten times as long", (1, 1), (112, 448), 0.25)
EASY_VQA = Shape("as easy-VQA: 9 or 10 questions on an image of 64 px", (9, 10), (64, 64))
VQA_V2 = Shape("as VQA v2: 5 or 6 questions on an image of 288 to 384 px (100 to 196 tokens)", (5, 6), (288, 384))


def write_splits(shape: Shape, train: int, folder: Path, test: int = 6) -> Path:
    """Write train.jsonl and test.jsonl of so many questions, about different images; the path of the first."""
    write_rows(shape, test, folder, "test")
    return write_rows(shape, train, folder)


def write_rows(shape: Shape, count: int, folder: Path, name: str = "train", seed: int = 0) -> Path:
    """Write `count` questions and their images; the path of the jsonl file with image, question and answer."""
    rng, rows = random.Random(f"{seed}:{name}"), list[dict[str, Any]]()
    (folder / name).mkdir(parents=True, exist_ok=True)
    while len(rows) < count:
        image = f"{name}/{len(rows)}.jpg"
        write_image(folder / image, (_side(shape, rng), _side(shape, rng)), rng.getrandbits(32))
        for _ in range(rng.randint(*shape.questions)):
            times = LONG if rng.random() < shape.long else 1
            text = " ".join(rng.choices(WORDS, k=times * rng.randint(4, 9))) + "?"
            answer = " ".join(rng.sample(WORDS, rng.randint(1, 2)))
            rows.append({"image": image, "question": text, "answer": answer})
    path = folder / f"{name}.jsonl"
    write_jsonl(path, rows[:count])
    return path


def write_image(path: Path, size: tuple[int, int], seed: int) -> None:
    """A picture of soft random colours as a JPEG file."""
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(path, quality=90)


def _side(shape: Shape, rng: random.Random) -> int:
    return rng.randrange(shape.sides[0], shape.sides[1] + 1, 16)
