"""Trainings that write down which examples each step sees, and that can be stopped behind a step."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import hydra
import pytest

from vlmexp import distributed
from vlmexp.checks import checked
from vlmexp.interruption import Preempted
from vlmexp.main import CONFIG_DIR
from vlmexp.runs import Run
from vlmexp.training.rank_batches import DealtCollator, WithoutLoss
from vlmexp.training.stage import train_model
from vlmexp.training.trainer import VlmTrainer


@contextlib.contextmanager
def watching(run: Run, last_step: int | None) -> Iterator[None]:
    """Append `[step, ids of the examples]` to seen-RANK.jsonl for each batch; stop behind `last_step`."""
    collate, compute = DealtCollator.__call__, VlmTrainer.training_step
    seen = run.path(f"seen-{distributed.rank()}.jsonl")
    made: dict[bytes, list[str]] = {}  # token ids of a batch -> its examples

    def collated(self: DealtCollator, items: Sequence[Any]) -> dict[str, Any]:
        batch = collate(self, items)
        made[batch["input_ids"].numpy().tobytes()] = [] if isinstance(items[0], WithoutLoss) else [e.id for e in items]
        return batch

    def step(self: VlmTrainer, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        if last_step is not None and self.state.global_step == last_step - 1:
            run.interruption.signal = signal.SIGTERM
        with seen.open("a") as file:
            file.write(json.dumps([self.state.global_step, made[inputs["input_ids"].numpy().tobytes()]]) + "\n")
        return compute(self, model, inputs, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DealtCollator, "__call__", collated)
        patch.setattr(VlmTrainer, "training_step", step)
        yield


def watched_training(directory: Path, overrides: Sequence[str], last_step: int | None) -> None:
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        config = checked(hydra.compose("config", list(overrides)))
    with contextlib.suppress(Preempted), Run.open(directory, config, []) as run, watching(run, last_step):
        train_model(config, run)


if __name__ == "__main__":
    distributed.start()
    for directory, overrides, last_step in json.loads(Path(sys.argv[1]).read_text()):
        watched_training(Path(directory), overrides, last_step)
    distributed.stop()
