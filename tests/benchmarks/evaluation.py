"""Questions a second in evaluation: one by one, in plain batches, and with shared images, all in one run.

The last two also without a thread that prepares the next batches meanwhile. Then answers are ranked.

    python -m tests.benchmarks.evaluation

Two kinds of data: as easy-VQA's (9 or 10 questions on an image of 16 tokens) and as VQA v2's (5 or 6 questions on an
image of 256 to 576 tokens). The ways take turns, so that a noisy machine is as noisy to each.
"""

from __future__ import annotations

import functools
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from vlmexp.collator.batch import Collator, Masking
from vlmexp.collator.lengths import token_lengths
from vlmexp.collator.prompt import ChatMessage, MessagePart, PromptTemplate
from vlmexp.data.example import Example
from vlmexp.evaluation.generate import generate_answers
from vlmexp.evaluation.ranking import rank_answers
from vlmexp.models.load import ModelSource, load_model, load_processor

ROUNDS = 3
NEW_TOKENS = 8
KINDS = {"as easy-VQA": (12, (9, 10), (64, 64)), "as VQA v2": (12, (5, 6), (256, 384))}  # images, questions, pixels
WAYS = {  # questions in a batch, shared images, batches that are prepared beforehand
    "one by one": (1, False, 2),
    "batches of 8": (8, False, 2),
    "batches of 32": (32, False, 2),
    "batches of 32, no overlap": (32, False, 0),
    "shared images, 32": (32, True, 2),
    "shared images, 32, no overlap": (32, True, 0),
}
RANKED = 24  # questions
RANKING_WAYS = {"one prompt a candidate": False, "shared prompts": True}
CHOICES = "yes no red blue green yellow black gray teal brown circle triangle rectangle".split()
WORDS = "what color is the shape does this image contain a circle how many are there is it red or blue".split()


def questions(folder: Path, images: int, counts: tuple[int, int], sides: tuple[int, int]) -> list[Example]:
    """Random questions about images of noise."""
    rng = random.Random(0)
    examples = []
    for number in range(images):
        size = (rng.randrange(sides[0], sides[1] + 1, 16), rng.randrange(sides[0], sides[1] + 1, 16))
        path = folder / f"{number}-{size}.png"
        noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        for _ in range(rng.randint(*counts)):
            text = " ".join(rng.sample(WORDS, rng.randint(3, 9))) + "?"
            examples.append(Example(str(len(examples)), {"question": text}, (), (path,)))
    return examples


def main() -> None:
    """Print a table for each kind of data."""
    torch.set_num_threads(1)
    source = ModelSource("vlmexp:tiny")
    model, processor = load_model(source, print), load_processor(source, print)
    turns = [
        ChatMessage("user", (MessagePart("image"), MessagePart("text", "{question}"))),
        ChatMessage("assistant", (MessagePart("text", "{answer}"),)),
    ]
    collator = Collator(processor, PromptTemplate(processor, turns, "", ["question"]), Masking(prompt=True))
    for kind, shape in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            examples = questions(Path(folder), *shape)
            lengths = token_lengths(collator, examples, with_answer=False)
            compare(
                f"{kind}: {len(examples)} questions",
                {
                    name: functools.partial(
                        generate_answers, model, collator, examples, lengths, size, NEW_TOKENS,
                        share_images=shared, ahead=ahead,
                    )
                    for name, (size, shared, ahead) in WAYS.items()
                },
            )  # fmt: skip
            compare(
                f"{kind}: {len(CHOICES)} candidates for {RANKED} answers ranked",
                {
                    name: functools.partial(likeliest, model, collator, examples[:RANKED], lengths[:RANKED], shared)
                    for name, shared in RANKING_WAYS.items()
                },
            )


def likeliest(model: Any, collator: Collator, examples: list[Example], lengths: list[int], shared: bool) -> list[str]:
    """The likeliest candidate for each answer."""
    choices = [CHOICES] * len(examples)
    ranked = rank_answers(model, collator, examples, lengths, 32, choices, share_prompts=shared)
    return [ranking[0][0] for ranking in ranked]


def compare(title: str, ways: dict[str, Callable[[], list[str]]]) -> None:
    """Print a table, its ratios to the first way. Best of the rounds: what disturbs a run only makes it slower."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    answers = {}
    for _ in range(ROUNDS):
        for name, answer in ways.items():
            start = time.perf_counter()
            answers[name] = answer()
            seconds[name].append(time.perf_counter() - start)
    table = Table(title=title, title_justify="left")
    for heading in ("", "questions/s", "ratio", "same answers"):
        table.add_column(heading, justify="right" if heading else "left")
    first = next(iter(ways))
    count = len(answers[first])
    for name, times in seconds.items():
        same = sum(a == b for a, b in zip(answers[name], answers[first], strict=True))
        ratio = min(seconds[first]) / min(times)
        table.add_row(name, f"{count / min(times):.1f}", f"{ratio:.2f}", f"{same} of {count}")
    Console().print(table)


if __name__ == "__main__":
    main()
