"""TensorBoard: event files below the run directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from vlmexp.tracking.tracker import Tracker, evaluation_scalars, scalars


class Board(Tracker):
    """Writes scalars, and the configuration as text.

    Args:
        folder: for the event files; a resumed run adds one.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._folder, self._config = folder, config
        self._writer: Any = None

    def log(self, line: Mapping[str, Any]) -> None:
        step = line["step"]
        # What a run that was killed logged from this step on is about to be repeated.
        writer = self._open(purge_step=step)
        for name, value in scalars(line).items():
            writer.add_scalar(name, value, step)
        writer.flush()

    def evaluated(self, name: str, result: Mapping[str, Any], step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        writer = self._open(purge_step=None)
        for metric, value in evaluation_scalars(name, result).items():
            writer.add_scalar(metric, value, step)
        writer.flush()

    def close(self, succeeded: bool) -> None:
        if self._writer is not None:
            self._writer.close()

    def _open(self, purge_step: int | None) -> Any:
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=purge_step)
            text = yaml.safe_dump(dict(self._config), sort_keys=False, allow_unicode=True)
            self._writer.add_text("config", "".join(f"    {line}\n" for line in text.splitlines()))
        return self._writer
