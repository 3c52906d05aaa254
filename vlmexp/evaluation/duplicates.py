"""Scores with and without the questions about what another split shows, which the model may have been trained on."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from vlmexp.data.prepare import Prepared
from vlmexp.evaluation.row import Row
from vlmexp.evaluation.score import summarise

TRAINING_RUN = "training run"  # whose data an evaluation of other data is compared with


def score_without_duplicates(
    prepared: Prepared,
    split: str,
    rows: Sequence[Row],
    predictions: Sequence[str],
    metrics: Sequence[str],
    trained_on: Collection[str] = (),
) -> dict[str, Any] | None:
    """How many questions are about what another split shows, and the scores of the others; None: none is.

    The result is `{"n", "of": {split: n}, "what", "without": {"n", "metrics", "intervals"}}`; `without` is null where
    no question is left.

    Args:
        trained_on: ids of rows that the training run of the evaluated model is known to have seen.
    """
    listed = {TRAINING_RUN: set(trained_on)}
    for line in prepared.duplicates():
        if line["split"] == split:
            listed.setdefault(line["other_split"], set()).add(line["id"])
    of = {other: sum(row.id in ids for row in rows) for other, ids in listed.items()}
    places = [index for index, row in enumerate(rows) if not any(row.id in ids for ids in listed.values())]
    if len(places) == len(rows):
        return None
    without = None
    if places:
        _, left = summarise([predictions[index] for index in places], [rows[index] for index in places], metrics)
        without = {name: left[name] for name in ("n", "metrics", "intervals")}
    return {
        "n": len(rows) - len(places),
        "of": {other: count for other, count in of.items() if count},
        "what": prepared.shown_kind,
        "without": without,
    }
