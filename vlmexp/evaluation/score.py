"""Predictions to scores: every example first, then means over all of them and over each value of a metadata column."""

from __future__ import annotations

import importlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

from vlmexp.errors import UserError, unknown
from vlmexp.evaluation.bleu import tokenizers
from vlmexp.evaluation.intervals import bootstrap_interval
from vlmexp.evaluation.metrics import CORPUS_METRICS, METRICS, ROUGE, Metric, without_value

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

    A metric by its dotted path is tried with an empty prediction, which models do give.

    Raises:
        UserError: there is no such metric, it fails, or two give a value of the same name.
    """
    givers: dict[str, str] = {}  # name of a value -> its metric
    for metric in dict.fromkeys(metrics):
        function = find_metric(metric)
        if metric == "rouge":
            names: Sequence[str] = ROUGE
        elif function is None or metric in METRICS:
            names = [metric]
        else:
            names = list(metric_values(metric, function, "", ["a"], "an empty prediction"))
        for name in names:
            if name in givers:
                raise UserError(
                    f"The metrics {givers[name]} and {metric} both give a value named {name!r}: "
                    "rename one of the functions (or the keys of what it returns), or leave one out."
                )
            givers[name] = metric
    return list(givers)


def metric_values(name: str, metric: Metric, prediction: str, answers: Sequence[str], place: str) -> dict[str, float]:
    """Name -> value of what a metric says of one prediction.

    Args:
        place: which prediction it is, for messages.

    Raises:
        UserError: the metric fails, or gives anything but finite numbers.
    """
    try:
        value: Any = metric(prediction, answers)
        values = value if isinstance(value, Mapping) else {name.rpartition(".")[2]: value}
        numbers = {key: float(number) for key, number in values.items() if isinstance(number, SupportsFloat)}
    except Exception as error:
        raise UserError(f"The metric {name} fails on {place}: {type(error).__name__}: {error}.") from error
    if not numbers or len(numbers) < len(values) or not all(map(math.isfinite, numbers.values())):
        raise UserError(
            f"The metric {name} gives {value!r} on {place}: it must be a finite number, or a dict of such by name."
        )
    return numbers


def score_examples(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    metrics: Sequence[str],
    ids: Sequence[str] | None = None,
) -> Scores:
    """One dict of metric -> value for each example, all with the same names.

    Args:
        ids: of the examples, for messages; None: their numbers.

    Raises:
        UserError: a metric fails on an example, or gives anything but finite numbers by the same names for all.
    """
    functions = {name: function for name in metrics if (function := find_metric(name)) is not None}
    places = [f"example {id}" for id in ids or range(len(predictions))]
    scores: Scores = [{} for _ in predictions]
    for name, function in functions.items():
        names = None
        for row, prediction, given, place in zip(scores, predictions, answers, places, strict=True):
            values = metric_values(name, function, prediction, given, place)
            names = names or values.keys()
            if values.keys() != names:
                raise UserError(
                    f"The metric {name} gives {', '.join(values)} on {place}, and {', '.join(names)} on those "
                    "before: its values must have the same names for every example."
                )
            row |= values
    return scores


def mean_scores(scores: Scores) -> dict[str, float]:
    """Mean of each metric; an example counts once."""
    return {name: sum(row[name] for row in scores) / len(scores) for name in scores[0]} if scores else {}


def summarise(
    predictions: Sequence[str],
    answers: Sequence[Sequence[str]],
    metadata: Sequence[Mapping[str, Any]],
    metrics: Sequence[str],
    ids: Sequence[str] | None = None,
) -> tuple[Scores, dict[str, Any]]:
    """Scores of every example, and their summary.

    The summary is `{"n", "main_metric", "metrics": {name: value}, "intervals": {name: [low, high]},
    "by": {column: {value: {"n", "metrics", "intervals"}}}}`. Intervals are 95 % bootstrap intervals of means over
    examples; metrics of a corpus, which are computed anew for each group, have none. A value that texts as short as
    these cannot have is None, and "undefined" says why. BLEU's tokenizers are named, with how many examples each cut
    if there are several ("bleu_tokenizer"). `ids` are for messages.
    """
    scores = score_examples(predictions, answers, metrics, ids)
    of_a_corpus = [name for name in metrics if name in CORPUS_METRICS]

    def summary(indices: Sequence[int]) -> dict[str, Any]:
        chosen = [scores[i] for i in indices]
        values = mean_scores(chosen)
        said, meant = [predictions[i] for i in indices], [answers[i] for i in indices]
        for name in of_a_corpus:
            values[name] = CORPUS_METRICS[name](said, meant)
        undefined = without_value(metrics, said, meant)
        of_examples = [name for name in values if name not in of_a_corpus and name not in undefined]
        intervals = {name: bootstrap_interval([row[name] for row in chosen]) for name in of_examples}
        return {
            "n": len(indices),
            "metrics": {name: None if name in undefined else round(value, 10) for name, value in values.items()},
            "intervals": {name: [round(end, 6) for end in ends] for name, ends in intervals.items()},
            **({"undefined": undefined} if undefined else {}),
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
    cut_by = {"bleu_tokenizer": _tokenizers_of(answers)} if "bleu" in metrics else {}
    return scores, {**overall, "main_metric": main, **cut_by, "by": by}


def _tokenizers_of(answers: Sequence[Sequence[str]]) -> str:
    """`zh`, or where there are several `zh (90), 13a (10)`."""
    count = Counter(tokenizers(answers)).most_common()
    return ", ".join(name if len(count) == 1 else f"{name} ({number:,})" for name, number in count)
