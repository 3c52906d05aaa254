"""The gradient audit: trained weights that get no gradient learn nothing, and the loss does not tell."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmexp.errors import UserError
from vlmexp.models.modules import PARTS

_SHOWN = 6  # groups of tensors in a message; run.json has all
log = logging.getLogger(__name__)


class GradientAudit(TrainerCallback):
    """Looks at the first steps' gradients and names the trained tensors that got none (None or exactly zero).

    Half of an adapter's tensors have no gradient until the other half has moved: LoRA's A meets a B of zeros. So the
    audit ends with the step after the first one that could move weights, which is the second step; the third with a
    warm-up from a learning rate of zero; later if fp16's loss scaling skipped steps. It ends sooner once all tensors
    had a gradient, as in full fine-tuning. After its end it costs nothing. A resumed training is looked at anew, and
    its result takes the place of the earlier one.

    Norms are of what the optimizer gets in the last step looked at: summed over `gradient_accumulation_steps`, without
    the loss scale, and clipped to `max_grad_norm`.

    Args:
        mode: `error` stops the training with a UserError, `warn` logs a warning.
        part_of: a parameter's name to vision, projector or language.
        record: takes `gradient_audit={step, trainable, norms, without_gradient}`.
    """

    def __init__(self, mode: str, part_of: Callable[[str], str], record: Callable[..., None]) -> None:
        self._mode, self._part_of, self._record = mode, part_of, record
        self._norms: dict[str, float] = {}
        self._silent: set[str] | None = None  # without a gradient in all steps so far
        self._steps = 0
        self._moved = False  # whether an earlier step could change weights
        self._done = False

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: Any,
    ) -> None:
        if not self._done and model is not None:
            self._norms = gradient_norms(model)

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        optimizer: Any = None,
        **_: Any,
    ) -> None:
        if self._done:
            return
        self._steps += 1
        if getattr(optimizer, "step_was_skipped", False):  # an overflow in fp16: these gradients were thrown away
            return
        silent = {name for name, norm in self._norms.items() if norm == 0}
        self._silent = silent if self._silent is None else self._silent & silent
        if self._moved or not self._silent:
            self._done = True
            self._report(state.global_step + 1, self._silent)
        self._moved = any(group["lr"] > 0 for group in optimizer.param_groups)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if not self._done:
            log.info("train.gradient_audit: %d steps are too few to tell which weights get no gradient.", self._steps)
            self._record(gradient_audit={"step": None, "steps_seen": self._steps})

    def _report(self, step: int, silent: Collection[str]) -> None:
        parts = {name: self._part_of(name) for name in self._norms}
        norms = {
            part: math.hypot(*(norm for name, norm in self._norms.items() if parts[name] == part))
            for part in PARTS
            if part in parts.values()
        }
        self._record(
            gradient_audit={
                "step": step,
                "trainable": len(parts),
                "norms": {part: norm if math.isfinite(norm) else None for part, norm in norms.items()},
                "without_gradient": grouped(name for name in parts if name in silent),
            }
        )
        if not silent:
            return
        first = step - self._steps + 1
        message = (
            f"train.gradient_audit: {len(silent)} of {len(parts)} trained tensors had no gradient in the steps "
            f"{first} to {step}: {listing(parts, silent)}. What the loss does not depend on learns nothing: leave it "
            "out with peft.exclude_modules or peft.train_parts"
        )
        if "vision" in {parts[name] for name in silent}:
            message += " (text alone reaches no vision tower: was there an image in these steps?)"
        if self._mode == "error":
            raise UserError(f"{message}, or set train.gradient_audit=warn.")
        log.warning("%s.", message)


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Euclidean norm of each trainable parameter's gradient, by name; 0.0 exactly if there is none or all is zero."""
    return {
        name: 0.0 if parameter.grad is None else _norm(parameter.grad)
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def _norm(gradient: torch.Tensor) -> float:
    # In float64, in which the squares of the smallest float32 numbers are not zero.
    return float(torch.linalg.vector_norm(gradient, dtype=torch.float64))


def listing(parts: Mapping[str, str], silent: Collection[str]) -> str:
    """The tensors in `silent` in a few words; `parts` maps all trained tensors to the part of the model."""
    counts = {part: [name for name, own in parts.items() if own == part] for part in PARTS}
    whole = [part for part, names in counts.items() if names and all(name in silent for name in names)]
    shown = [f"all {len(counts[part])} of the {part} part" for part in whole]
    shown += grouped(name for name in parts if name in silent and parts[name] not in whole)
    more = f" and {len(shown) - _SHOWN} more groups (see run.json)" if len(shown) > _SHOWN else ""
    return ", ".join(shown[:_SHOWN]) + more


def grouped(names: Iterable[str]) -> list[str]:
    """Parameter names with those put together that differ in layer numbers and in modules of one block.

    `base_model.model.layers.3.mlp.fc1.lora_A.default.weight` and the same of `fc2` become
    `layers.{3}.mlp.*.lora_A (2 tensors)`.
    """
    groups: dict[tuple[tuple[str, ...], str], list[tuple[tuple[str, ...], str]]] = {}
    for name in names:
        *body, last = _components(name)
        block = max((index + 2 for index, word in enumerate(body) if word.isdigit()), default=len(body))
        pattern = tuple("#" if word.isdigit() else word for word in body[:block])
        numbers = tuple(word for word in body[:block] if word.isdigit())
        groups.setdefault((pattern, last), []).append((numbers, ".".join(body[block:])))
    return [_described(pattern, last, members) for (pattern, last), members in groups.items()]


def _components(name: str) -> list[str]:
    words = [word for word in name.removeprefix("base_model.model.").split(".") if word != "default"]
    return words[:-1] if len(words) > 1 and words[-2].startswith("lora_") else words


def _described(pattern: tuple[str, ...], last: str, members: list[tuple[tuple[str, ...], str]]) -> str:
    columns = iter(zip(*(numbers for numbers, _ in members), strict=True))
    head = [f"{{{_ranges(map(int, next(columns)))}}}" if word == "#" else word for word in pattern]
    modules = {module for _, module in members}
    middle = ["*"] if len(modules) > 1 else [module for module in modules if module]
    count = f"{len(members)} tensor" + ("s" if len(members) > 1 else "")
    return f"{'.'.join([*head, *middle, last])} ({count})"


def _ranges(numbers: Iterable[int]) -> str:
    """`0-3,7` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(first) if first == end else f"{first}-{end}" for first, end in runs)
