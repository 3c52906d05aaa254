"""Where the time of training steps goes: a trace of some of them, to look at, and a table of their operations."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmexp.files import write_text

TRACE, TABLE = "trace.json.gz", "table.txt"
_ROWS = 40
log = logging.getLogger(__name__)


class StepProfile(TrainerCallback):
    """Profiles so many steps, from the second one of this attempt on: the first one also allocates and compiles.

    Writes a trace for https://ui.perfetto.dev or chrome://tracing, and a table of the operations that took the most
    time, on the first process alone. A training that ends earlier has fewer steps in it.

    Args:
        steps: how many.
        folder: where trace and table go.
    """

    def __init__(self, steps: int, folder: Path) -> None:
        self._steps, self._folder = steps, folder
        self._seen = 0  # steps of this attempt
        self._profile: profile | None = None

    def on_step_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._seen == 1 and state.is_world_process_zero:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if args.device.type == "cuda" else [])]
            self._profile = profile(activities=kinds)
            self._profile.start()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._seen += 1
        if self._seen == 1 + self._steps:
            self._write(args.device.type)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._write(args.device.type)

    def _write(self, device: str) -> None:
        if self._profile is None:
            return
        found, self._profile = self._profile, None
        found.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        found.export_chrome_trace(str(self._folder / TRACE))
        order = f"self_{device}_time_total"
        table = found.key_averages().table(sort_by=order, row_limit=_ROWS, max_name_column_width=60)
        write_text(self._folder / TABLE, f"{self._seen - 1} training steps, torch {torch.__version__}\n{table}")
        log.info("A profile of %d steps is in %s.", self._seen - 1, self._folder)
