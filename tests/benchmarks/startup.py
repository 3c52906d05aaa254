"""Seconds from the command to the first step of a training, and what of them are imports."""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path

from tests.benchmarks.processes import Spent, in_turns, spent, spread, table

TITLE = "Start-up"
MINUTES = 3
IMPORTS = "import torch, transformers.trainer, peft, datasets"
ABOUT = f"""
`stage=train` of the embedded model on easy-VQA as it is by default (`python -m vlmexp stage=train train.max_steps=1`),
one thread, with data that an earlier run has prepared. The imports are `{IMPORTS}`, the shell is
`python -m vlmexp --cfg job`.
"""


def measure(folder: Path, rounds: int) -> str:
    """A table of seconds."""
    first_step(folder)  # which prepares the data and counts their tokens
    ways = {
        "shell": lambda _: spent([sys.executable, "-m", "vlmexp", "--cfg", "job"], folder),
        "imports": lambda _: spent([sys.executable, "-c", IMPORTS], folder),
        "first step of stage=train": lambda _: first_step(folder),
    }
    found, rows = in_turns(ways, rounds), list[list[str]]()
    imports = found["imports"]
    assert not isinstance(imports, str)
    base = statistics.median(one.wall_s for one in imports)
    for name, every in found.items():
        assert not isinstance(every, str)
        seconds = [one.seen_s or one.wall_s for one in every]
        ratio = f"{statistics.median(seconds) / base:.2f}"
        rows.append([name, spread(seconds), ratio, spread([one.cpu_s for one in every])])
    return ABOUT + "\n" + table(["", "seconds", "times the imports", "CPU seconds of the whole process"], rows)


def first_step(folder: Path) -> Spent:
    """A training of one step, watched for the line that it writes of it."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    command = [
        sys.executable, "-m", "vlmexp", "stage=train", "train.max_steps=1", "train.logging_steps=1",
        "train.save_strategy=no", "train.eval_strategy=no", "threads=1", f"hydra.run.dir={run}",
    ]  # fmt: skip
    variables = {"VLMEXP_DATA": str(folder / "prepared")}
    return spent(command, folder, variables, watched=run / "metrics.jsonl")
