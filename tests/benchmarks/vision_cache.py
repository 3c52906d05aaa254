"""LoRA in the language model alone, with and without the vision tower's output kept for all epochs."""

from __future__ import annotations

import functools
import statistics
from pathlib import Path

from tests.benchmarks.processes import in_turns, spread, table
from tests.benchmarks.shapes import VARIED, VQA_V2, write_splits
from tests.benchmarks.training import checkpoint, distances
from tests.benchmarks.trainings import Task, Training, ours

TITLE = "Text-only LoRA with cached vision features"
MINUTES = 6
OPTION = "cache_vision_features"
ABOUT = f"""
As in training above, with `peft.train_parts=[language]`, with `train.{OPTION}=off` and `on`; the cache is
filled before the training, which is not timed, and the second of the two epochs is.
"""


def measure(folder: Path, rounds: int, questions: int = 128) -> str:
    """A table of two data sets, without and with the cache."""
    model, rows = checkpoint(folder), list[list[str]]()
    for name, shape in {"varied": VARIED, "as VQA v2": VQA_V2}.items():
        task = Task(model, write_splits(shape, questions, folder / name), questions)
        place = folder / name / "run"
        found = in_turns({value: functools.partial(train, task, place, value) for value in ("off", "on")}, rounds)
        without = found["off"]
        assert not isinstance(without, str)
        rates = [questions / one.last_epoch_s(task.epochs) for one in without]
        rows.append([f"{name}, without", spread(rates), "", ""])
        with_cache = found["on"]
        assert not isinstance(with_cache, str)
        faster = [questions / one.last_epoch_s(task.epochs) for one in with_cache]
        ratio = statistics.median(faster) / statistics.median(rates)
        rows.append([f"{name}, with", spread(faster), f"{ratio:.2f}", distances(with_cache[0], without[0])[0]])
    return ABOUT + "\n" + table(["", "questions/s", "ratio", "loss differs by"], rows)


def train(task: Task, folder: Path, value: str, _: int) -> Training:
    """A training with this value of the option."""
    return ours(task, folder, "peft.train_parts=[language]", f"train.{OPTION}={value}")
