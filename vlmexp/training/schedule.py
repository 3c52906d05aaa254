"""How many steps a training has, held against what its options take for granted, before it begins."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmexp.errors import UserError

FEW_STEPS = 10  # with fewer a schedule that rises or falls is hardly one
log = logging.getLogger(__name__)


def require_steps(examples: int, arguments: TrainingArguments) -> None:
    """Raise a UserError if batches of `train.per_device_train_batch_size` leave no step to make."""
    size, ranks = arguments.train_batch_size, arguments.world_size
    if arguments.dataloader_drop_last and examples // size < ranks:
        each = f" on each of {ranks} processes" if ranks > 1 else ""
        raise UserError(
            f"train.dataloader_drop_last=true leaves no step to make: {examples} training examples do not fill one "
            f"batch of train.per_device_train_batch_size={size}{each}. Lower it to at most "
            f"{max(1, examples // ranks)}, or set train.dataloader_drop_last=false."
        )


class ScheduleNotes(TrainerCallback):
    """Says before the first step what will not come to pass in so few steps.

    Args:
        record: takes `schedule={steps, warmup_steps, notes}`.
        examples: of the train split.
        examples_a_step: on all ranks together.
        steps_were_chosen: whether the number of steps was asked for, as `train.max_steps` does.
    """

    def __init__(
        self, record: Callable[..., None], examples: int, examples_a_step: int, steps_were_chosen: bool
    ) -> None:
        self._record, self._chosen = record, steps_were_chosen
        self._examples, self._a_step = examples, examples_a_step

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        warmup = args.get_warmup_steps(state.max_steps)
        notes = self._few(state.max_steps) + out_of_reach(args, state, warmup)
        self._record(schedule={"steps": state.max_steps, "warmup_steps": warmup, "notes": notes})
        for note in notes:
            log.warning(note)

    def _few(self, steps: int) -> list[str]:
        if self._chosen or steps >= FEW_STEPS:
            return []
        return [
            f"This training has {steps} step{'s' if steps > 1 else ''}: {self._examples} examples, {self._a_step} a "
            "step. More come with a smaller train.per_device_train_batch_size or train.gradient_accumulation_steps, "
            "or with a larger train.num_train_epochs."
        ]


def out_of_reach(args: TrainingArguments, state: TrainerState, warmup: int) -> list[str]:
    """What the options ask for and `state.max_steps` steps do not reach."""
    steps, notes = state.max_steps, []
    if warmup >= steps and args.lr_scheduler_type not in ("constant", "reduce_lr_on_plateau", "greedy"):
        notes.append(
            f"train.warmup_steps={args.warmup_steps:g} are {warmup} of this training's {steps} steps: it ends before "
            f"train.learning_rate={args.learning_rate:g} is reached."
        )
    for name, what, strategy, every in (
        ("eval_steps", "evaluated", args.eval_strategy, state.eval_steps),
        ("save_steps", "saved", args.save_strategy, state.save_steps),
    ):
        if strategy == "steps" and every > steps:
            notes.append(f"train.{name}={every} are more than this training's {steps} steps: it is {what} at its end.")
    if args.eval_strategy != "no" and args.eval_delay > (
        steps if args.eval_strategy == "steps" else state.num_train_epochs
    ):
        notes.append(f"train.eval_delay={args.eval_delay:g} is never over: this training has {steps} steps.")
    return notes
