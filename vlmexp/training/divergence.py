"""A training that diverges, seen before its numbers reach a weight.

Every optimizer step is looked at once, behind its backward passes and before the optimizer: losses and gradient norm,
of all ranks. What is not finite ends the training there, so that weights and checkpoints stay those of the last good
step. The weights are looked at before each of them is saved, for a step can be too large though its gradient is finite.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from vlmexp import distributed

IDS = "example_ids"  # of a batch of the training
# fp16's loss scale begins at 65,536 and is halved with each overflow: after so many in a row it is below 1e-4.
MOST_OVERFLOWS = 30


@dataclass(frozen=True)
class NamedCollator:
    """A collator whose batches also hold the ids of their examples, "?" of rows that have none."""

    collate: Callable[[Any], dict[str, torch.Tensor]]

    def __call__(self, examples: Sequence[Any]) -> dict[str, Any]:
        return {**self.collate(examples), IDS: [getattr(example, "id", "?") for example in examples]}


class Diverged(Exception):
    """A step that must not be made, or weights that must not be saved.

    Attributes:
        record: what run.json keeps of it: `step`, and `loss`, `grad_norm`, `learning_rate` and `examples` (ids) of a
            step that was not made, `eval_loss` and `examples` of an evaluation behind the step, or neither if the
            weights are bad.
    """

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(f"the training diverged at step {record['step']}")
        self.record = record


class StepWatch:
    """The losses of an optimizer step's batches, read once, together with its gradient norm."""

    def __init__(self) -> None:
        self._ids: list[list[str]] = []
        self._losses: list[torch.Tensor] = []
        self._overflows = 0

    def begin(self, ids: list[list[str]]) -> None:
        """A new step, of batches with these examples."""
        self._ids, self._losses = ids, []

    def add(self, loss: torch.Tensor) -> None:
        """The loss of the step's next batch."""
        self._losses.append(loss.detach())

    def check(self, grad_norm: Any, scaled: bool) -> dict[str, Any] | None:
        """`loss` (mean over ranks), `grad_norm` and `examples` if a number is not finite on any rank; all ranks ask and
        are told the same.

        The examples are those of the batches whose loss is not finite, or all where it is the gradient only.

        Args:
            scaled: whether fp16's loss scaling leaves out steps whose gradients overflow; only if it never finds a
                scale that fits is that a divergence.
        """
        device = self._losses[0].device
        norm = torch.as_tensor(grad_norm, dtype=torch.float32, device=device)
        *losses, norm_value = torch.stack([*(loss.float() for loss in self._losses), norm]).tolist()
        bad_loss = not all(map(math.isfinite, losses))
        self._overflows = 0 if math.isfinite(norm_value) else self._overflows + 1
        bad = bad_loss or (self._overflows > (MOST_OVERFLOWS if scaled else 0))
        if not distributed.any_rank(bad):
            return None
        ranks = distributed.gathered((losses, norm_value, self._ids))
        batches = [batch for found, _, ids in ranks for batch in zip(found, ids, strict=True)]
        blamed = [ids for loss, ids in batches if not math.isfinite(loss)] or [ids for _, ids in batches]
        return {
            "loss": sum(sum(found) for found, _, _ in ranks) / len(ranks),
            "grad_norm": next((value for _, value, _ in ranks if not math.isfinite(value)), norm_value),
            "examples": [name for ids in blamed for name in ids],
        }


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no number in the tensors is NaN or infinite; read from their device once."""
    numbers = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel()]
    # The largest of all magnitudes: NaN goes through, and nothing as large as the tensor is made.
    largest = [torch.linalg.vector_norm(t.detach(), ord=math.inf).float() for t in numbers]
    return not largest or bool(torch.stack([value.to(largest[0].device) for value in largest]).isfinite().all())


def set_base_rates(optimizer: Any, scheduler: Any, rates: Sequence[float]) -> None:
    """Give each group of the optimizer another learning rate to begin with; the schedule goes on where it is."""
    for group, old, new in zip(optimizer.param_groups, scheduler.base_lrs, rates, strict=True):
        group["lr"] *= new / old if old else 1.0
        group["initial_lr"] = new
    scheduler.base_lrs = list(rates)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]
