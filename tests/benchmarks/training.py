"""Questions a second of a LoRA training through the command line, beside what one would use otherwise."""

from __future__ import annotations

import functools
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.processes import in_turns, spent, spread, table
from tests.benchmarks.shapes import EASY_VQA, SMALL, VARIED, VQA_V2, Shape, write_splits
from tests.benchmarks.trainings import Task, Training, ours, peer, recorded

TITLE = "Training"
MINUTES = 60
SHAPES = {"small": SMALL, "varied": VARIED, "easyvqa": EASY_VQA, "vqav2": VQA_V2}
OURS, BARE, TRL = "vlmexp", "bare loop over batches in memory", "TRL SFTTrainer"
PEERS = {BARE: "bare", "transformers Trainer": "trainer", TRL: "trl", "LLaMA-Factory": "llamafactory"}
ABOUT = """
A Qwen2-VL of 6 million parameters, LoRA r=16 on all linear layers, 32 questions an optimizer step in forward passes of
8, one thread, float32 on a CPU. vlmexp is `python -m vlmexp stage=train` with its defaults; the others get the same
rows in random order and the same options, TRL and LLaMA-Factory in environments of their own. Two epochs, of which the
second is timed; the ways take turns. Then each trains once more on the rows in vlmexp's order: how far their losses and
norms of the gradient are from vlmexp's, at most, over all steps. (LLaMA-Factory takes the mean of its forward passes'
losses where the others take that of a step's tokens.)
"""


def measure(folder: Path, rounds: int, questions: int = 128, only: tuple[str, ...] = ()) -> str:
    """A table for each data set.

    Args:
        questions: of an epoch, a multiple of 32.
        only: names of SHAPES; empty: all.
    """
    model = checkpoint(folder)
    return ABOUT + "".join(
        compared(shape, Task(model, write_splits(shape, questions, folder / name), questions), folder / name, rounds)
        for name, shape in SHAPES.items()
        if not only or name in only
    )


def checkpoint(folder: Path, vocabulary: int = 1024) -> Path:
    """The model of the benchmarks, with random weights."""
    made = folder / f"model-{vocabulary}"
    if not made.exists():
        command = [sys.executable, "-m", "tests.benchmarks.checkpoints", "small", made]
        spent([*command, "--vocabulary", str(vocabulary)], folder)
    return made


def compared(shape: Shape, task: Task, folder: Path, rounds: int) -> str:
    """All ways on one data set."""
    print(shape.title, flush=True)
    ways: dict[str, Callable[[int], Training]] = {OURS: lambda _: ours(task, folder / "ours")}
    for name, way in PEERS.items():
        ways[name] = functools.partial(peer_round, task, folder / way, way)
    found = in_turns(ways, rounds)
    _, order = recorded(task, folder / "order")
    rates = {
        name: [task.count / one.last_epoch_s(task.epochs) for one in trainings]
        for name, trainings in found.items()
        if not isinstance(trainings, str)
    }
    rows = []
    for name, trainings in found.items():
        if isinstance(trainings, str):
            rows.append([name, trainings, "", "", "", ""])
            continue
        same = trainings[0] if name == OURS else peer(task, folder / PEERS[name], PEERS[name], order)
        by = [
            f"{statistics.median(rates[name]) / statistics.median(rates[other]):.2f}" if other in rates else "-"
            for other in (BARE, TRL)
        ]
        rows.append([name, spread(rates[name]), *by, *distances(same, found[OURS][0])])
    heads = ["", "questions/s", "times the bare loop", "times TRL", "loss differs by", "gradient differs by"]
    found_here = f"\n**{shape.title}**\n\n{table(heads, rows)}"
    print(found_here, flush=True)
    return found_here


def peer_round(task: Task, folder: Path, way: str, number: int) -> Training:
    """A training of a peer on the rows in random order, another one in each round."""
    return peer(task, folder, way, task.shuffled(number))


def distances(one: Training, other: Training | str) -> list[str]:
    """The largest difference of a step's losses, and of the norms of its gradient in relation to their size."""
    if isinstance(other, str) or one is other:
        return ["", ""]
    if len(one.losses) != len(other.losses):
        return ["other steps", "other steps"]
    losses = max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))
    norms = max(abs(a - b) / b for a, b in zip(one.grad_norms, other.grad_norms, strict=True))
    return [f"{losses:.0e}", f"{norms:.0e}"]
