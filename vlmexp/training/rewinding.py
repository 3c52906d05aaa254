"""What becomes of a training that has diverged: it ends in a sentence, or goes on from a checkpoint of before."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from vlmexp import distributed
from vlmexp.errors import UserError
from vlmexp.files import remove_folder
from vlmexp.runs import Run
from vlmexp.training.checkpoints import newest_complete
from vlmexp.training.divergence import Diverged

LOWERED = 0.5  # the learning rate, with each time that a training is rewound
_SHOWN = 8  # ids in a message; run.json has all
log = logging.getLogger(__name__)


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
        newest = distributed.gathered(newest_complete(folder, run.note_fallback) if run.is_main else None)[0]
        run.update(divergences=[*before, record])
        raise _Stopped(_sentence(record, newest, run.directory, rewind, most))
    target = distributed.gathered(_rewound(run, _proven(record)) if run.is_main else None)[0]
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


def _rewound(run: Run, step: int) -> str | None:
    """The newest checkpoint of this step or an earlier one; later ones are removed."""
    while newest := newest_complete(run.path("checkpoints"), run.note_fallback):
        if int(newest.name.rpartition("-")[2]) <= step:
            break
        remove_folder(newest)
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
