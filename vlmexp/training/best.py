"""Which checkpoint is the best: what its metric needs, and when it is time to stop looking for a better one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmexp.errors import UserError, unknown
from vlmexp.evaluation.lookup import metric_names

EXAMPLES = 200  # answered at each evaluation where their number is not set and the metric needs some


def answered_examples(wanted: str | None, metrics: Sequence[str], given: int | None) -> int:
    """How many questions an evaluation within a training has to answer.

    Args:
        wanted: `train.metric_for_best_model`: loss or the name of a metric, with or without `eval_` before it.
        metrics: those that are computed of answers.
        given: `train.eval_generation_examples`.

    Raises:
        UserError: nothing measures the wanted metric, or one of the metrics cannot be computed.
    """
    names = metric_names(metrics)
    name = (wanted or "loss").removeprefix("eval_")
    if name == "loss":
        return given or 0
    if name not in names:
        raise unknown("train.metric_for_best_model", name, ["loss", *names])
    if given == 0:
        raise UserError(
            f"train.metric_for_best_model={wanted} is a metric of answers, and train.eval_generation_examples=0 asks "
            "for none: set it above 0, or leave it out."
        )
    return EXAMPLES if given is None else given


def evaluations_since_best(values: Sequence[float], greater_is_better: bool) -> int:
    """How many evaluations came after the best one, of equal ones the first; NaN is never better.

    >>> evaluations_since_best([0.5, 0.7, 0.7, 0.6], greater_is_better=True)
    2
    """
    ranked = [-math.inf if math.isnan(value) else value if greater_is_better else -value for value in values]
    return len(values) - 1 - ranked.index(max(ranked))
