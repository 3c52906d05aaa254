"""Peak memory of a training at the vocabulary of the Qwen models, on data shaped as VQA v2."""

from __future__ import annotations

import functools
import statistics
import sys
from pathlib import Path

from tests.benchmarks.processes import in_turns, spent, spread, table
from tests.benchmarks.shapes import VQA_V2, write_splits
from tests.benchmarks.training import BARE, OURS, PEERS, TRL, checkpoint, peer_round
from tests.benchmarks.trainings import Task, ours

TITLE = "Memory of a training step"
MINUTES = 4
ABOUT = """
The model of the training above with a vocabulary of 151,936 words (45 million parameters), data as VQA v2, one batch of
8 questions a step: the most that the process held up to the end of the training. An idle process has imported torch,
transformers and peft.
"""


def measure(folder: Path, rounds: int, questions: int = 24, vocabulary: int = 151_936) -> str:
    """A table of peaks."""
    task = Task(
        checkpoint(folder, vocabulary), write_splits(VQA_V2, questions, folder / "rows"), questions, step=8, epochs=1
    )
    ways = {name: functools.partial(peer_round, task, folder / PEERS[name], PEERS[name]) for name in (BARE, TRL)}
    found = in_turns({OURS: lambda _: ours(task, folder / "ours"), **ways}, rounds)
    idle = spent([sys.executable, "-c", "import torch, transformers.trainer, peft"], folder / "idle").peak_mib
    rows = [["idle process", f"{idle:,.0f}", "", ""]]
    peaks = {name: [one.peak_mib for one in all_] for name, all_ in found.items() if not isinstance(all_, str)}
    for name, trainings in found.items():
        if isinstance(trainings, str):
            rows.append([name, trainings, "", ""])
            continue
        middle, reference = statistics.median(peaks[name]), statistics.median(peaks.get(TRL, [float("nan")]))
        above = (middle - idle) / (reference - idle)
        rows.append([name, spread(peaks[name], 0), f"{middle / reference:.2f}", f"{above:.2f}"])
    return ABOUT + "\n" + table(["", "peak MiB", "of TRL's", "of TRL's, above an idle process"], rows)
