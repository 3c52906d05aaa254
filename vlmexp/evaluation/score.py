"""Predictions to scores: every example first, then means over all of them and over each value of a metadata column."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlmexp.errors import UserError, unknown
from vlmexp.evaluation.intervals import bootstrap_interval
from vlmexp.evaluation.metrics import CORPUS_METRICS, METRICS, ROUGE, Metric

Scores = list[dict[str, float]]


def find_metric(name: str) -> Metric | None:
    """A metric by its name or by the dotted path of a function of (prediction, answers).

    None for a metric that has a value for a whole corpus only.

    Raises:
        UserError: there is no such metric.
    """
    if name in METRICS or name in CORPUS_METRICS:
        return METRICS.get(name)
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise unknown("metric", name, METRICS.keys() | CORPUS_METRICS.keys())
    try:
        metric = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The metric {name} cannot be imported: {error}.") from None
    return metric  # type: ignore[no-any-return]


def metric_names(metrics: Sequence[str]) -> list[str]:
    """The names of the values that metrics give, in their order; `rouge` gives three.

    Raises:
        UserError: there is no such metric.
    """
    names: list[str] = []
    for metric in metrics:
        function = find_metric(metric)
        if metric == "rouge":
            names += ROUGE
        elif function is None or metric in METRICS:
            names.append(metric)
        else:
            value = function("", ["a"])
            names += value if isinstance(value, dict) else [metric.rpartition(".")[2]]
    return names


def score_examples(predictions: Sequence[str], answers: Sequence[Sequence[str]], metrics: Sequence[str]) -> Scores:
    """One dict of metric -> value for each example."""
    functions = {name: function for name in metrics if (function := find_metric(name)) is not None}
    scores: Scores = []
    for prediction, given in zip(predictions, answers, strict=True):
        row: dict[str, float] = {}
        for name, function in functions.items():
            value = function(prediction, given)
            row |= value if isinstance(value, dict) else {name.rpartition(".")[2]: value}
        scores.append(row)
    return scores


def mean_scores(scores: Scores) -> dict[str, float]:
    """Mean of each metric; an example counts once."""
    return {name: sum(row[name] for row in scores) / len(scores) for name in scores[0]} if scores else {}


def summarise(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    metadata: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
) -> tuple[Scores, dict[str, Any]]:
    """Scores of every example, and their summary.

    The summary is `{"n", "main_metric", "metrics": {name: value}, "intervals": {name: [low, high]},
    "by": {column: {value: {"n", "metrics", "intervals"}}}}`. Intervals are 95 % bootstrap intervals of means over
    examples; metrics of a corpus, which are computed anew for each group, have none.
    """
    scores = score_examples(predictions, answers, metrics)
    of_a_corpus = [name for name in metrics if name in CORPUS_METRICS]

    def summary(indices: Sequence[int]) -> dict[str, Any]:
        chosen = [scores[i] for i in indices]
        values = mean_scores(chosen)
        for name in of_a_corpus:
            values[name] = CORPUS_METRICS[name]([predictions[i] for i in indices], [answers[i] for i in indices])
        of_examples = [name for name in values if name not in of_a_corpus]
        intervals = {name: bootstrap_interval([row[name] for row in chosen]) for name in of_examples}
        return {
            "n": len(indices),
            "metrics": {name: round(value, 10) for name, value in values.items()},
            "intervals": {name: [round(end, 6) for end in ends] for name, ends in intervals.items()},
        }

    by: dict[str, dict[str, Any]] = {}
    for column in metadata[0] if metadata else ():
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(metadata):
            groups.setdefault(str(row.get(column)), []).append(index)
        by[column] = {value: summary(groups[value]) for value in sorted(groups)}
    overall = summary(range(len(predictions)))
    names = [name for first in metrics[:1] for name in overall["metrics"] if name in (first, first.rpartition(".")[2])]
    main = next(iter(names or overall["metrics"]), None)
    return scores, {**overall, "main_metric": main, "by": by}
