"""Learning rates of their own for the vision tower and the projector: groups of parameters in the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from vlmexp.errors import UserError

PART = "part"  # key of a parameter group that has a learning rate of its own


def require_parts(model: nn.Module, rates: Mapping[str, float], part_of: Callable[[str], str]) -> None:
    """Check that every part with a learning rate of its own has weights that are trained.

    Raises:
        UserError: a part has none: the model has no such modules, or the adapter's `target_modules` leave them out.
    """
    trained = {part_of(name) for name, parameter in model.named_parameters() if parameter.requires_grad}
    for part, rate in rates.items():
        if part not in trained:
            raise UserError(
                f"train.{part}_learning_rate={rate}: no weight of the {part} part is trained. Does peft.target_modules "
                f"leave it out, or does the model call it by a name that model.modules.{part} does not fit?"
            )


def split_groups(
    optimizer: torch.optim.Optimizer, model: nn.Module, rates: Mapping[str, float], part_of: Callable[[str], str]
) -> None:
    """Move the parameters of each part in `rates` into groups of their own, before the first step.

    Each group of the optimizer keeps what it has (its weight decay, say) and loses these parameters to a copy with the
    part's learning rate. The groups that there were stay first, even if nothing is left in them: so a scheduler, which
    multiplies each group's rate by the same factor, still reports the base rate.
    """
    parts = {parameter: part_of(name) for name, parameter in model.named_parameters()}
    for group in list(optimizer.param_groups):
        for part, rate in rates.items():
            own = [parameter for parameter in group["params"] if parts[parameter] == part]
            if own:
                optimizer.param_groups.append({**group, "params": own, "lr": rate, PART: part})
        group["params"] = [parameter for parameter in group["params"] if parts[parameter] not in rates]


def part_rates(optimizer: Any) -> dict[str, float]:
    """`learning_rate_vision` and `learning_rate_projector`, as far as they are set apart, at this moment."""
    groups = getattr(optimizer, "param_groups", [])  # DeepSpeed's stand-in has none
    return {f"learning_rate_{group[PART]}": float(group["lr"]) for group in groups if PART in group}
