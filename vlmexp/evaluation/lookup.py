"""Metrics by their names, or by the dotted paths of functions of one's own."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, SupportsFloat

from vlmexp.errors import UserError, unknown
from vlmexp.evaluation.metrics import CORPUS_METRICS, METRICS, VALUES
from vlmexp.evaluation.row import Row

OF_A_CORPUS = "predictions"  # what the first argument of one's own metric of a corpus is called
_WITH_ROW = 3  # arguments of a metric that sees the row
_TRIED = Row(answers=("a",), id="an empty prediction")


def example_metric(name: str) -> Callable[..., Any] | None:
    """The function of (prediction, answers) or (prediction, answers, row); None if it has one of a corpus only.

    Raises:
        UserError: there is no such metric.
    """
    if name in METRICS or name in CORPUS_METRICS:
        return METRICS.get(name)
    function = _imported(name)
    return None if _parameters(function)[:1] == [OF_A_CORPUS] else function


def corpus_metric(name: str) -> Callable[..., Any] | None:
    """The function of (predictions, answers) or (predictions, answers, rows); None if there is none.

    One of one's own is told by its first argument, `predictions`.

    Raises:
        UserError: there is no such metric.
    """
    if name in METRICS or name in CORPUS_METRICS:
        return CORPUS_METRICS.get(name)
    function = _imported(name)
    return function if _parameters(function)[:1] == [OF_A_CORPUS] else None


def metric_names(metrics: Sequence[str]) -> list[str]:
    """The names of the values that metrics give, in their order; `rouge` gives three.

    A metric by its dotted path is tried with an empty prediction, which models do give.

    Raises:
        UserError: there is no such metric, it fails, or two give a value of the same name.
    """
    givers: dict[str, str] = {}  # name of a value -> its metric
    for metric in dict.fromkeys(metrics):
        for name in _names(metric):
            if name in givers:
                raise UserError(
                    f"The metrics {givers[name]} and {metric} both give a value named {name!r}: "
                    "rename one of the functions (or the keys of what it returns), or leave one out."
                )
            givers[name] = metric
    return list(givers)


def example_values(name: str, metric: Callable[..., Any], prediction: str, row: Row) -> dict[str, float]:
    """Name -> value of what a metric says of one prediction.

    Raises:
        UserError: the metric fails, or gives anything but finite numbers.
    """
    place = row.id if row is _TRIED else f"example {row.id}"
    values = _called(name, metric, (prediction, row.answers, row), place)
    numbers = {key: value for key, value in values.items() if value is not None}
    if len(numbers) < len(values):
        raise _no_numbers(name, None if len(values) == 1 else values, place)
    return numbers


def corpus_values(
    name: str, metric: Callable[..., Any], predictions: Sequence[str], rows: Sequence[Row]
) -> dict[str, float | None]:
    """Name -> value of what a metric says of a whole corpus; None where it has no value.

    Raises:
        UserError: the metric fails, or gives anything but finite numbers and None.
    """
    answers = [row.answers for row in rows]
    return _called(name, metric, (predictions, answers, rows), f"{len(rows)} examples")


@cache
def _names(metric: str) -> list[str]:
    if metric in VALUES:
        return VALUES[metric]
    if metric in METRICS or metric in CORPUS_METRICS:
        return [metric]
    function = _imported(metric)
    try:
        if example_metric(metric) is not None:
            return list(example_values(metric, function, "", _TRIED))
        return list(corpus_values(metric, function, [""], [_TRIED]))
    except UserError:
        if len(_parameters(function)) < _WITH_ROW:
            raise
        return [metric.rpartition(".")[2]]  # it needs what only a real row has


def _imported(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.rpartition(".")
    if not module_name:
        raise unknown("metric", name, METRICS.keys() | CORPUS_METRICS.keys())
    try:
        metric = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"The metric {name} cannot be imported: {error}.") from None
    return metric  # type: ignore[no-any-return]


def _parameters(function: Callable[..., Any]) -> list[str]:
    """The names of what a function takes without naming it; they are asked for with every example."""
    try:
        return _looked_up(function)
    except TypeError:  # an object that has no hash
        return _looked_up.__wrapped__(function)


@cache
def _looked_up(function: Callable[..., Any]) -> list[str]:
    """The same; of a function that Python cannot look into, the first two."""
    try:
        found = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return ["prediction", "answers"]
    return [one.name for one in found if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]


def _called(name: str, metric: Callable[..., Any], arguments: tuple[Any, ...], place: str) -> dict[str, float | None]:
    """What a metric gives, by name. It gets the row, or the rows, if it takes a third argument."""
    try:
        given: Any = metric(*arguments[: _WITH_ROW if len(_parameters(metric)) >= _WITH_ROW else 2])
        values = given if isinstance(given, Mapping) else {name.rpartition(".")[2]: given}
        numbers = {key: float(value) for key, value in values.items() if isinstance(value, SupportsFloat)}
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The metric {name} fails on {place}: {type(error).__name__}: {error}.") from error
    missing = {key: None for key, value in values.items() if value is None}
    if not values or len(numbers) + len(missing) < len(values) or not all(map(math.isfinite, numbers.values())):
        raise _no_numbers(name, given, place)
    return {key: numbers.get(key) for key in values}


def _no_numbers(name: str, given: Any, place: str) -> UserError:
    return UserError(
        f"The metric {name} gives {given!r} on {place}: it must be a finite number, or a dict of such by name."
    )
