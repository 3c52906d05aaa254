"""Predictions to scores: every example first, then means over all of them and over each value of a metadata column."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

from vlmexp.errors import UserError, unknown
from vlmexp.evaluation.metrics import CORPUS_METRICS, METRICS, Metric

Scores = list[dict[str, float]]
ANNOTATORS = 10  # of VQA v2, whose accuracy is defined for ten answers


def find_metric(name: str) -> Metric:
    """A metric by its name or by the dotted path of a function of (prediction, answers).

    Raises:
        UserError: there is no such metric.
    """
    if name in METRICS:
        return METRICS[name]
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise unknown("metric", name, METRICS)
    try:
        metric = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The metric {name} cannot be imported: {error}.") from None
    return metric  # type: ignore[no-any-return]


def score_examples(predictions: Sequence[str], answers: Sequence[Sequence[str]], metrics: Sequence[str]) -> Scores:
    """One dict of metric -> value for each example."""
    functions = {name: find_metric(name) for name in metrics}
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


def as_annotated(answers: Sequence[str]) -> list[str]:
    """A single answer as if all ten annotators had given it; more than one as they are."""
    return list(answers) * ANNOTATORS if len(answers) == 1 else list(answers)


def summarise(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    metadata: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
) -> tuple[Scores, dict[str, Any]]:
    """Scores of every example, and their summary.

    The summary is `{"n", "main_metric", "metrics": {name: value}, "by": {column: {value: {"n", "metrics"}}}}`;
    values are between 0 and 1. BLEU is that of the corpus (its definition), in the groups too.
    """
    annotated = [as_annotated(given) for given in answers]
    scores = score_examples(predictions, annotated, metrics)

    def summary(indices: Sequence[int]) -> dict[str, Any]:
        values = mean_scores([scores[i] for i in indices])
        for name in set(metrics) & CORPUS_METRICS.keys():
            values[name] = CORPUS_METRICS[name]([predictions[i] for i in indices], [annotated[i] for i in indices])
        return {"n": len(indices), "metrics": {name: round(value, 10) for name, value in values.items()}}

    by: dict[str, dict[str, Any]] = {}
    for column in metadata[0] if metadata else ():
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(metadata):
            groups.setdefault(str(row.get(column)), []).append(index)
        by[column] = {value: summary(groups[value]) for value in sorted(groups)}
    overall = summary(range(len(predictions)))
    return scores, {**overall, "main_metric": next(iter(overall["metrics"]), None), "by": by}
