"""A training that diverges: seen before its numbers reach a weight, and what becomes of it.

Every optimizer step is looked at once, behind its backward passes and before the optimizer: losses and gradient norm,
of all ranks. What is not finite ends the training there, so that weights and checkpoints stay those of the last good
step. The weights are looked at before each of them is saved, for a step can be too large though its gradient is finite.
"""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlmexp import distributed
from vlmexp.errors import UserError
from vlmexp.runs import Run
from vlmexp.training.checkpoints import newest_complete

IDS = "example_ids"  # of a batch of the training
LOWERED = 0.5  # the learning rate, with each time that a training is rewound
# fp16's loss scale begins at 65,536 and is halved with each overflow: after so many in a row it is below 1e-4.
MOST_OVERFLOWS = 30
_SHOWN = 8  # ids in a message; run.json has all
log = logging.getLogger(__name__)


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
    # The largest of all magnitudes: NaN goes through, and nothing as large as the tensor is made.
    largest = [torch.linalg.vector_norm(t.detach(), ord=math.inf).float() for t in tensors if t.numel()]
    return not largest or bool(torch.stack([value.to(largest[0].device) for value in largest]).isfinite().all())


def set_base_rates(optimizer: Any, scheduler: Any, rates: Sequence[float]) -> None:
    """Give each group of the optimizer another learning rate to begin with; the schedule goes on where it is."""
    for group, old, new in zip(optimizer.param_groups, scheduler.base_lrs, rates, strict=True):
        group["lr"] *= new / old if old else 1.0
        group["initial_lr"] = new
    scheduler.base_lrs = list(rates)
    scheduler._last_lr = [group["lr"] for group in optimizer.param_groups]


def rewinds(run: Run) -> int:
    """How often the run's training was rewound so far."""
    return sum("rewound_to" in record for record in run.record.get("divergences", []))


def rewind_or_stop(run: Run, diverged: Diverged, rewind: bool, most: int) -> None:
    """Record a divergence, and leave the checkpoint from which the training goes on as the newest.

    That is the last one whose weights have given a finite loss since; what was saved later is removed, as a checkpoint
    from which the very next step fails may be what is wrong. Without any the training starts anew.

    Args:
        rewind: whether to go on at all, at most `most` times in a run.

    Raises:
        UserError: it does not go on.
    """
    folder, before = run.path("checkpoints"), run.record.get("divergences", [])
    record = _as_json(diverged.record)
    if not rewind or rewinds(run) >= most:
        newest = distributed.gathered(newest_complete(folder) if run.is_main else None)[0]
        run.update(divergences=[*before, record])
        raise _Stopped(_sentence(record, newest, run.directory, rewind, most))
    target = distributed.gathered(_rewound(folder, _proven(record)) if run.is_main else None)[0]
    factor = LOWERED ** (rewinds(run) + 1)
    run.update(divergences=[*before, {**record, "rewound_to": target, "learning_rate_factor": factor}])
    log.warning(
        "%s: going on from %s with %g of the learning rate (train.on_divergence=rewind, %d of %d times).",
        _happened(record), target or "the start", factor, rewinds(run), most,
    )  # fmt: skip


class _Stopped(UserError):
    exit_code = 1


def _proven(record: dict[str, Any]) -> int:
    """The last step whose weights gave a finite loss, be it that of the next step."""
    return int(record["step"]) - (2 if "loss" in record else 1)


def _rewound(folder: Path, step: int) -> str | None:
    """The newest checkpoint of this step or an earlier one; later ones are removed."""
    while (newest := newest_complete(folder)) and int(newest.name.rpartition("-")[2]) > step:
        shutil.rmtree(newest)
    return newest.name if newest else None


def _as_json(record: dict[str, Any]) -> dict[str, Any]:
    """With numbers that JSON does not have as text."""
    return {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}


def _happened(record: dict[str, Any]) -> str:
    at = f"The training diverged at step {record['step']}"
    if "examples" not in record:
        return f"{at}: it left weights that are not finite"
    shown = ", ".join(record["examples"][:_SHOWN])
    more = len(record["examples"]) - _SHOWN
    examples = f"the examples {shown}{f' and {more} more (all in run.json)' if more > 0 else ''}"
    if "eval_loss" in record:
        return f"{at}: the evaluation behind it has a loss of {record['eval_loss']}, in the batch of {examples}"
    return (
        f"{at}: the loss is {_short(record['loss'])}, the gradient norm {_short(record['grad_norm'])}, the learning "
        f"rate {_short(record['learning_rate'])}, in the batch of {examples}"
    )


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def _sentence(record: dict[str, Any], newest: Path | None, directory: Path, rewind: bool, most: int) -> str:
    kept = f"run={directory} goes on from {newest.name}" if newest else f"run={directory} starts anew (no checkpoint)"
    other = (
        f"it was rewound train.most_rewinds={most} times"
        if rewind
        else "and train.on_divergence=rewind goes back by itself, with half of the learning rate"
    )
    return (
        f"{_happened(record)}. No such weights were saved; {kept}, {other}. A new run may need a lower "
        "train.learning_rate, a longer train.warmup_steps or other data."
    )
