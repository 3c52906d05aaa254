"""Which checkpoint a resume may take."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

log = logging.getLogger(__name__)


def newest_complete(folder: Path) -> Path | None:
    """The checkpoint with the highest step that was written to its end; unfinished ones are removed.

    The Trainer writes trainer_state.json last, and only then removes older checkpoints: a checkpoint whose state can
    be read is complete.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    newest = None
    for path in found:
        if is_complete(path):
            newest = newest or path
        else:
            log.warning("%s was not written to its end: removing it.", path)
            shutil.rmtree(path)
    return newest


def is_last(checkpoint: Path) -> bool:
    """Whether the checkpoint was made by the last step of its training, be it one that ended early."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return bool(stopped or state["global_step"] >= state["max_steps"])


def written_by(checkpoint: Path) -> int | None:
    """How many processes wrote a checkpoint; None if it does not hold their random states (`train.save_only_model`)."""
    if (checkpoint / "rng_state.pth").exists():
        return 1
    return sum(1 for _ in checkpoint.glob("rng_state_*.pth")) or None


def missing_state(checkpoint: Path) -> list[str]:
    """What an exact resume needs and a checkpoint does not hold: one of `train.save_only_model`."""
    needed = {"the optimizer": "optimizer.pt", "the learning rate schedule": "scheduler.pt"}
    missing = [what for what, name in needed.items() if not (checkpoint / name).exists()]
    return missing if written_by(checkpoint) else [*missing, "the random numbers"]


def is_complete(checkpoint: Path) -> bool:
    """Whether the checkpoint was written to its end."""
    try:
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return state.get("global_step") == int(checkpoint.name.rpartition("-")[2])
