"""The metrics as `evaluate` modules of the project's own: `evaluate.load` would fetch a script from the Hub.

module("vqa_accuracy").compute(predictions=["red"], references=[["red", "red", "dark red"]])
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate

from vlmexp.errors import unknown
from vlmexp.evaluation.lookup import corpus_metric, corpus_values
from vlmexp.evaluation.metrics import CORPUS_METRICS, METRICS, without_value
from vlmexp.evaluation.row import Row
from vlmexp.evaluation.score import mean_scores, score_examples


class AnswerMetric(evaluate.Metric):  # type: ignore[misc]
    """Mean of a per-example metric, or the corpus's value where that is the definition.

    A value that the texts are too short for is None. `config_name` is the metric's name in
    `vlmexp.evaluation.metrics.METRICS`.
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=(METRICS.get(self.config_name) or CORPUS_METRICS[self.config_name]).__doc__ or "",
            citation="",
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, Any]:
        name = self.config_name
        rows = [Row(answers=tuple(given)) for given in references]
        values: dict[str, Any] = dict(mean_scores(score_examples(predictions, rows, [name])))
        if (of_a_corpus := corpus_metric(name)) is not None:
            values |= corpus_values(name, of_a_corpus, predictions, rows)
        return values | dict.fromkeys(without_value([name], predictions, references))


def module(name: str) -> AnswerMetric:
    """The metric of that name, keeping its inputs in memory.

    Raises:
        UserError: there is no such metric.
    """
    if name not in METRICS and name not in CORPUS_METRICS:
        raise unknown("metric", name, METRICS.keys() | CORPUS_METRICS.keys())
    return AnswerMetric(config_name=name, keep_in_memory=True)
