"""Predictions to scores: every example first, then means over all of them and over each value of a metadata column."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vlmexp.errors import UserError
from vlmexp.evaluation.bleu import tokenizers
from vlmexp.evaluation.intervals import bootstrap_interval, numbered
from vlmexp.evaluation.lookup import corpus_metric, corpus_values, example_metric, example_values, metric_names
from vlmexp.evaluation.metrics import without_value
from vlmexp.evaluation.row import Row

Scores = list[dict[str, float]]

NO_SUCH_ROWS = "no such rows"  # why a corpus metric has no value


def score_examples(predictions: Sequence[str], rows: Sequence[Row], metrics: Sequence[str]) -> Scores:
    """One dict of metric -> value for each example, all with the same names.

    Raises:
        UserError: a metric fails on an example, or gives anything but finite numbers by the same names for all.
    """
    functions = {name: function for name in metrics if (function := example_metric(name)) is not None}
    scores: Scores = [{} for _ in predictions]
    for name, function in functions.items():
        names = None
        for found, prediction, row in zip(scores, predictions, rows, strict=True):
            values = example_values(name, function, prediction, row)
            names = names or values.keys()
            if values.keys() != names:
                raise UserError(
                    f"The metric {name} gives {', '.join(values)} on example {row.id}, and {', '.join(names)} on those "
                    "before: its values must have the same names for every example."
                )
            found |= values
    return scores


def mean_scores(scores: Scores) -> dict[str, float]:
    """Mean of each metric; an example counts once."""
    return {name: sum(row[name] for row in scores) / len(scores) for name in scores[0]} if scores else {}


def summarise(
    predictions: Sequence[str], rows: Sequence[Row], metrics: Sequence[str], columns: Sequence[str] = ()
) -> tuple[Scores, dict[str, Any]]:
    """Scores of every example, and their summary.

    The summary is `{"n", "n_media", "main_metric", "metrics": {name: value}, "intervals": {name: [low, high]},
    "by": {column: {value: {"n", "metrics", "intervals"}}}}`. Intervals are 95 % bootstrap intervals of means over
    examples; where several are about the same media, media are drawn and not examples, and "n_media" says how many
    there are. Metrics of a corpus, which are computed anew for each group, have none. A value that texts as short as
    these cannot have is None, and "undefined" says why. BLEU's tokenizers are named, with how many examples each cut
    if there are several ("bleu_tokenizer").

    Args:
        columns: of the metadata, whose values are groups; an example with a list of values is in the group of each.
    """
    scores = score_examples(predictions, rows, metrics)
    media = numbered([row.shared for row in rows])

    def of(indices: Sequence[int]) -> dict[str, Any]:
        return _summary(
            [scores[i] for i in indices],
            [predictions[i] for i in indices],
            [rows[i] for i in indices],
            [media[i] for i in indices],
            metrics,
        )

    by: dict[str, dict[str, Any]] = {}
    for column in columns:
        groups: dict[str, list[int]] = {}
        for index, row in enumerate(rows):
            for value in group_names(row.metadata, column):
                groups.setdefault(value, []).append(index)
        by[column] = {value: of(groups[value]) for value in sorted(groups)}
    overall = of(range(len(predictions)))
    main = next((name for name in metric_names(metrics) if name in overall["metrics"]), None)
    cut_by = {"bleu_tokenizer": _tokenizers_of([row.answers for row in rows])} if "bleu" in metrics else {}
    return scores, {**overall, "main_metric": main, **cut_by, "by": by}


def _summary(
    scores: Scores, predictions: Sequence[str], rows: Sequence[Row], media: Sequence[int], metrics: Sequence[str]
) -> dict[str, Any]:
    """Means and the values of the corpus, with intervals of the former."""
    of_a_corpus: dict[str, float | None] = {}
    for name in metrics:
        if (metric := corpus_metric(name)) is not None:
            of_a_corpus |= corpus_values(name, metric, predictions, rows)
    values: dict[str, float | None] = {**mean_scores(scores), **of_a_corpus}
    undefined = {name: NO_SUCH_ROWS for name, value in of_a_corpus.items() if value is None}
    undefined |= without_value(metrics, predictions, [row.answers for row in rows])
    of_examples = [name for name in values if name not in of_a_corpus and name not in undefined]
    intervals = {name: bootstrap_interval([row[name] for row in scores], media) for name in of_examples}
    n_media = len(set(media))
    return {
        "n": len(rows),
        **({"n_media": n_media} if n_media < len(rows) else {}),
        "metrics": {
            name: None if value is None or name in undefined else round(value, 12) for name, value in values.items()
        },
        "intervals": {name: [round(end, 6) for end in ends] for name, ends in intervals.items()},
        **({"undefined": undefined} if undefined else {}),
    }


def group_names(metadata: Mapping[str, Any], column: str) -> list[str]:
    """The groups of a column that an example belongs to: its value, or each of a list's values once."""
    value = metadata.get(column)
    values = value if isinstance(value, list | tuple) else [value]
    return list(dict.fromkeys(map(str, values))) or ["None"]


def _tokenizers_of(answers: Sequence[Sequence[str]]) -> str:
    """`zh`, or where there are several `zh (90), 13a (10)`."""
    count = Counter(tokenizers(answers)).most_common()
    return ", ".join(name if len(count) == 1 else f"{name} ({number:,})" for name, number in count)
