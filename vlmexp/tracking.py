"""Weights & Biases and TensorBoard: where they write, and that they never ask a question."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from vlmexp.config import Tracking


@contextlib.contextmanager
def tracked(tracking: Tracking, run_id: str, directory: Path) -> Iterator[None]:
    """Set what the Trainer's own integrations read from the environment, and close W&B's run at the end of the block.

    W&B runs online only where there is a key, keeps its id when the run is resumed, and writes below the run directory.
    """
    if tracking.report_to == "tensorboard":
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(directory / "tensorboard")
    if tracking.report_to == "wandb":
        online = "WANDB_API_KEY" in os.environ
        values = {
            "WANDB_MODE": tracking.mode or ("online" if online else "offline"),
            "WANDB_PROJECT": tracking.project,
            "WANDB_DIR": str(directory),
            "WANDB_RUN_ID": run_id,
            "WANDB_RESUME": "allow",
            "WANDB_SILENT": "true",
            "WANDB_LOG_MODEL": "false",
        }
        if tracking.entity:
            values["WANDB_ENTITY"] = tracking.entity
        os.environ.update(values)
    try:
        yield
    finally:
        if tracking.report_to == "wandb":
            import wandb

            wandb.finish()  # the next point of a sweep in this process is a run of its own
