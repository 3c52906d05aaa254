"""How much room on disk a training needs, asked before its first step and not after hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import nn
from transformers import TrainerState, TrainingArguments

from vlmexp.models.export import weight_bytes
from vlmexp.storage import StorageError, free_bytes, size, writing
from vlmexp.training.memory import optimizer_state_bytes

_SMALL_FILES = 2**18  # bytes: configuration, states of the schedule and of the random numbers


def checkpoint_bytes(model: nn.Module, arguments: TrainingArguments) -> int:
    """Estimate of a checkpoint: the adapter, or all weights where there is none, and the optimizer's state."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = weight_bytes(trained if isinstance(model, PeftModel) else model.parameters())
    state = 0 if arguments.save_only_model else optimizer_state_bytes(str(arguments.optim), trained)
    return weights + state + _SMALL_FILES


def checkpoints_kept(arguments: TrainingArguments, state: TrainerState) -> int:
    """How many checkpoints lie on the disk when the training is over."""
    if arguments.save_strategy == "no":
        return 0
    by_step = state.max_steps // max(1, state.save_steps)
    saves = max(1, round(state.num_train_epochs) if arguments.save_strategy == "epoch" else by_step)
    if arguments.save_total_limit is None or arguments.save_total_limit <= 0:
        return saves
    return min(saves, arguments.save_total_limit + bool(arguments.load_best_model_at_end))


def check_room(folder: Path, model: nn.Module, arguments: TrainingArguments, state: TrainerState) -> dict[str, Any]:
    """Compare what a training will write with what is free.

    Args:
        folder: of the checkpoints, beside which the trained and the merged model go.

    Returns:
        `checkpoint`, `needed` (by all that is written from now on) and `free`, in bytes; free is None where the system
        does not tell.

    Raises:
        StorageError: not even one checkpoint fits, or the folder cannot be written.
    """
    one, kept = checkpoint_bytes(model, arguments), checkpoints_kept(arguments, state)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".probe").touch()
        (folder / ".probe").unlink()
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    trained = weight_bytes(parameter for parameter in model.parameters() if parameter.requires_grad)
    # An old checkpoint makes way for a new one only when that is complete.
    models = trained + weight_bytes(model.parameters())
    needed = max(0, kept * one + max(one if kept else 0, models) - there)
    free = free_bytes(folder)
    if free is not None and kept and free < one:
        raise StorageError(
            f"{folder} has no room for a checkpoint: it takes about {size(one)}, and {size(free)} are free there. Make "
            "room, or choose another place with hydra.run.dir."
        )
    return {"checkpoint": one, "needed": needed, "free": free}
