"""Questions a second in evaluation: one by one, in plain batches, and with shared images, all in one run.

    python -m tests.benchmarks.evaluation

Two kinds of data: as easy-VQA's (9 or 10 questions on an image of 16 tokens) and as VQA v2's (5 or 6 questions on an
image of 256 to 576 tokens). The ways take turns, so that a noisy machine is as noisy to each.
"""

from __future__ import annotations

import random
import tempfile
import time
from pathlib import Path

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
from vlmexp.models.load import ModelSource, load_model, load_processor

ROUNDS = 3
NEW_TOKENS = 8
KINDS = {"as easy-VQA": (12, (9, 10), (64, 64)), "as VQA v2": (12, (5, 6), (256, 384))}  # images, questions, pixels
WAYS = {  # questions in a batch, shared images
    "one by one": (1, False), "batches of 8": (8, False), "batches of 32": (32, False), "shared images, 32": (32, True),
}  # fmt: skip
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
            seconds: dict[str, list[float]] = {name: [] for name in WAYS}
            answers = {}
            for _ in range(ROUNDS):
                for name, (size, shared) in WAYS.items():
                    start = time.perf_counter()
                    answers[name] = generate_answers(
                        model, collator, examples, lengths, size, NEW_TOKENS, description=name, share_images=shared
                    )
                    seconds[name].append(time.perf_counter() - start)
        report(kind, len(examples), seconds, answers)


def report(kind: str, count: int, seconds: dict[str, list[float]], answers: dict[str, list[str]]) -> None:
    """Best of the rounds: what disturbs a run only makes it slower."""
    table = Table(title=f"{kind}: {count} questions", title_justify="left")
    for heading in ("", "questions/s", "ratio", "same answers"):
        table.add_column(heading, justify="right" if heading else "left")
    alone = min(seconds["one by one"])
    for name, times in seconds.items():
        same = sum(a == b for a, b in zip(answers[name], answers["one by one"], strict=True))
        table.add_row(name, f"{count / min(times):.1f}", f"{alone / min(times):.2f}", f"{same} of {count}")
    Console().print(table)


if __name__ == "__main__":
    main()
