"""What a tracker is, and one that cannot break the run that it tracks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


class Tracker:
    """Where metrics go beside the run directory. This one: nowhere."""

    is_open = False

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of metrics.jsonl."""

    def evaluated(self, name: str, result: Mapping[str, Any], step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """The result of a finished evaluation.

        Args:
            name: base or finetuned.
            result: the content of its *_evaluation.json.
            step: how many steps the model was trained.
            rows: some of its predictions, their images as functions of pixels on the longer side, which give None for
                one that cannot be read.
        """

    def close(self, succeeded: bool) -> None:
        """Write what is left; nothing is logged afterwards."""


class Guarded(Tracker):
    """Passes everything on until something fails; that is told once, and the run goes on without.

    Args:
        failed: takes the error.
    """

    is_open = True

    def __init__(self, tracker: Tracker, failed: Callable[[Exception], None]) -> None:
        self._tracker, self._failed = tracker, failed

    def log(self, line: Mapping[str, Any]) -> None:
        self._try(lambda: self._tracker.log(line))

    def evaluated(self, name: str, result: Mapping[str, Any], step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._try(lambda: self._tracker.evaluated(name, result, step, rows))

    def close(self, succeeded: bool) -> None:
        self._try(lambda: self._tracker.close(succeeded))

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            broken, self._tracker = self._tracker, Tracker()
            with contextlib.suppress(Exception):
                broken.close(succeeded=False)
            self._failed(error)


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of metrics.jsonl under the names that trackers group by.

    >>> scalars({"step": 3, "loss": 0.5, "eval_loss": 0.25})
    {'train/loss': 0.5, 'eval/loss': 0.25}
    """
    return {
        f"eval/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}": value
        for name, value in line.items()
        if name != "step"
    }


def evaluation_scalars(name: str, result: Mapping[str, Any]) -> dict[str, float]:
    """The metrics of an evaluation, its number of examples and, if it was repeated so, its metrics with other images.

    A metric without a value is left out.

    >>> evaluation_scalars("base", {"n": 8, "cut": 2, "metrics": {"vqa_accuracy": 0.5, "bleu": None}})
    {'base/vqa_accuracy': 0.5, 'base/n': 8, 'base/cut': 2}
    """
    blind = result.get("blind") or {"metrics": {}}
    return {
        **{f"{name}/{metric}": value for metric, value in result["metrics"].items() if value is not None},
        **{f"{name}/{count}": result[count] for count in ("n", "cut") if count in result},
        **{f"{name}_blind/{metric}": value for metric, value in blind["metrics"].items() if value is not None},
    }
