"""The optimizer and the schedule, tried on one weight: what they miss is known before anything is loaded."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from vlmexp.errors import UserError

_STEPS = 1000  # of a training whose number of steps is not known yet
_WITHOUT_OPTIONS = ("constant", "constant_with_warmup")  # schedules
_METRIC_DRIVEN = ("reduce_lr_on_plateau", "greedy")


def check_optimizer(arguments: TrainingArguments) -> None:
    """Build `train.optim` and `train.lr_scheduler_type` as the Trainer does, and make a step with them.

    Raises:
        UserError: a package is missing, an option is missing, unknown or without effect, or the step fails.
    """
    schedule_type: Any = arguments.lr_scheduler_type
    kind = str(schedule_type.value)
    if arguments.lr_scheduler_kwargs and kind in _WITHOUT_OPTIONS:
        raise UserError(
            f"train.lr_scheduler_kwargs={arguments.lr_scheduler_kwargs}: train.lr_scheduler_type={kind} takes none; "
            "leave them out."
        )
    trial = _trial(arguments)
    try:
        _refuse_idle(trial.args)
        optimizer = trial.create_optimizer()
    except UserError:
        raise
    except Exception as error:  # of any package that an optimizer may come from
        raise UserError(f"train.optim={trial.args.optim.value} cannot be built: {_told(error)}") from None
    steps = max(arguments.max_steps, _STEPS)
    try:
        schedule: Any = trial.create_scheduler(steps)
        factors = [factor(step) for factor in getattr(schedule, "lr_lambdas", ()) for step in (0, 1, steps // 2, steps)]
        if not all(map(math.isfinite, factors)):
            raise ValueError("its learning rate is not finite")
    except Exception as error:
        raise UserError(
            f"train.lr_scheduler_type={kind} cannot be built with train.lr_scheduler_kwargs="
            f"{arguments.lr_scheduler_kwargs}: {_told(error)}"
        ) from None
    try:
        for parameter in trial.model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        if kind not in _METRIC_DRIVEN:
            schedule.step()
    except Exception as error:
        raise UserError(f"train.optim={trial.args.optim.value} does not work on this machine: {_told(error)}") from None


def _trial(arguments: TrainingArguments) -> Any:
    """A Trainer that can make an optimizer and a schedule, and nothing else."""
    trial: Any = Trainer.__new__(Trainer)
    trial.args = copy.copy(arguments)
    if arguments.optim_target_modules is not None:  # names of the real model's modules
        trial.args.optim_target_modules = "all-linear"
    trial.model = nn.Linear(1, 1).to(arguments.device)
    trial.optimizer = trial.lr_scheduler = trial.optimizer_cls_and_kwargs = None
    return trial


def _refuse_idle(arguments: Any) -> None:
    """Raise a UserError if a piece of `train.optim_args` changes nothing about the optimizer."""

    model: Any = nn.Linear(1, 1)

    def built(text: str | None) -> str:
        arguments.optim_args = text
        return str(Trainer.get_optimizer_cls_and_kwargs(arguments, model))

    given = arguments.optim_args
    pieces = given.replace(" ", "").split(",") if given else []
    whole = built(given)
    for number, piece in enumerate(pieces):
        if built(",".join(pieces[:number] + pieces[number + 1 :]) or None) == whole:
            raise UserError(f"train.optim_args: {piece} changes nothing about train.optim={arguments.optim.value}.")
    arguments.optim_args = given


def _told(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if text.endswith((".", "`")) else f"{text or type(error).__name__}."
