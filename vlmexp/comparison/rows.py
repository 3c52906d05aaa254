"""From run directories to rows that can be sorted and shown: scores with intervals, cost, and what varies."""

from __future__ import annotations

import math
import statistics
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmexp.comparison.reading import UNFINISHED, RunFiles, get, seconds, short_names
from vlmexp.errors import unknown
from vlmexp.evaluation.intervals import wilson
from vlmexp.report import LABELS, LOSSES, LOWEST_FIRST, MEAN_RANK, is_share

HIGHEST = {
    "cider": 10.0,
    "mme_perception_score": 2000.0,
    "mme_cognition_score": 800.0,
}  # of our metrics; the others end at 1
ZERO_OR_ONE = (  # what they give a single example
    "exact_match", "multiple_choice_accuracy", "relaxed_accuracy", "gqa_accuracy", "ai2d_accuracy",
    "scienceqa_accuracy", "seedbench_accuracy", "realworldqa_accuracy", "ocrbench_accuracy", "mmmu_accuracy",
    "mmstar_accuracy", "mmbench_accuracy", "pope_accuracy", "mme_accuracy",
)  # fmt: skip


@dataclass(frozen=True)
class Score:
    """A metric's value over n examples with its 95 % interval; of a group, the mean and deviation over the seeds.

    `method` says how the interval was found: bootstrap (by the run itself) or Wilson.
    """

    value: float
    n: int | None = None
    low: float | None = None
    high: float | None = None
    method: str | None = None
    seeds: int | None = None
    deviation: float | None = None


@dataclass
class Row:
    """A run, or several that differ by their seed only.

    Attributes:
        name: the shortest end of the directory's path that no other run has.
        scores: of the chosen evaluation, the main metric first; training losses last.
        base: scores of the model before fine-tuning.
        undefined: metric -> why it has no value in this evaluation.
        cut: how many answers came to the limit of their length without an end, and of how many.
        marks: why this row cannot simply be compared with the others.
    """

    run: RunFiles
    name: str
    scores: dict[str, Score]
    base: dict[str, Score]
    seconds: float | None
    samples_per_s: float | None
    memory_gib: float | None
    undefined: Mapping[str, Any] = field(default_factory=dict)
    cut: tuple[int, int] = (0, 0)
    marks: list[str] = field(default_factory=list)
    members: list[Row] = field(default_factory=list)

    @property
    def status(self) -> str:
        """Of the run; of a group, how many are in which."""
        if len(self.members) < 2:
            return self.run.status
        count = Counter(row.run.status for row in self.members)
        return next(iter(count)) if len(count) == 1 else ", ".join(f"{n} {status}" for status, n in count.items())

    @property
    def note(self) -> str:
        """What is wrong, in one line."""
        errors = [line for row in self.members or [self] for line in row.run.error.splitlines()[:1]]
        cut, n = self.cut
        told = [f"{cut:,} of {n:,} answers cut"] if cut else []
        return "; ".join(dict.fromkeys([*self.marks, *told, *errors]))


def make_rows(runs: Sequence[RunFiles], evaluation: str) -> list[Row]:
    """One row for each run, in the order given, with its mean rank over the data sets of their suites.

    Args:
        evaluation: base or finetuned, whose scores are compared.
    """
    rows = [
        _row(run, name, evaluation)
        for run, name in zip(runs, short_names([run.directory for run in runs]), strict=True)
    ]
    rank_rows(rows, evaluation)
    return rows


def _row(run: RunFiles, name: str, evaluation: str) -> Row:
    scores = all_scores(run, evaluation)
    losses = {name: run.get("stages", "train", name) for name in LOSSES}
    scores |= {name: Score(float(value)) for name, value in losses.items() if is_number(value)}
    rates = [row["samples_per_s"] for row in run.metrics if is_number(row.get("samples_per_s"))]
    memory = [row["memory_gib"] for row in run.metrics if is_number(row.get("memory_gib"))]
    peak = run.get("stages", "train", "peak_memory_gib")
    return Row(
        run=run,
        name=name,
        scores=scores,
        base=all_scores(run, "base"),
        seconds=seconds(run),
        samples_per_s=statistics.median(rates) if rates else None,
        memory_gib=peak if is_number(peak) and peak else max(memory, default=None),
        undefined=get(run.evaluations.get(evaluation), "undefined") or {},
        cut=cut_of(run.evaluations.get(evaluation)),
    )


def all_scores(run: RunFiles, evaluation: str) -> dict[str, Score]:
    """The metrics of the run's own data set, and as NAME/METRIC those of its suite."""
    scores = scores_of(run.evaluations.get(evaluation))
    for member, evaluations in run.suite.items():
        scores |= {f"{member}/{name}": found for name, found in scores_of(evaluations.get(evaluation)).items()}
    return scores


def suite_metrics(rows: Iterable[Row], evaluation: str) -> list[str]:
    """The main metric of each data set of the runs' suites, as NAME/METRIC."""
    return list(
        dict.fromkeys(
            f"{member}/{main}"
            for row in rows
            for member, evaluations in row.run.suite.items()
            if f"{member}/{(main := get(evaluations.get(evaluation), 'main_metric'))}" in row.scores
        )
    )


def ranked_metrics(rows: Sequence[Row], evaluation: str) -> list[str]:
    """Those of them that every run with a suite has: over these a mean rank compares like with like."""
    shared = suite_metrics(rows, evaluation)
    having = [row for row in rows if any(name in row.scores for name in shared)]
    return [name for name in shared if all(name in row.scores for row in having)] if len(having) > 1 else []


def rank_rows(rows: Sequence[Row], evaluation: str) -> None:
    """Give each run with a suite its mean rank over the data sets that all of them have: 1 is the best; equal scores
    share the mean of their places."""
    for row in rows:
        row.scores.pop(MEAN_RANK, None)
    names = ranked_metrics(rows, evaluation)
    having = [row for row in rows if names and names[0] in row.scores]
    for row in having:
        ranks = []
        for name in names:
            values = [other.scores[name].value for other in having]
            own = row.scores[name].value
            ranks.append(sum(value > own for value in values) + (values.count(own) + 1) / 2)
        row.scores[MEAN_RANK] = Score(math.fsum(ranks) / len(ranks), len(ranks))


def cut_of(evaluation: Mapping[str, Any] | None) -> tuple[int, int]:
    """How many answers of an *_evaluation.json were cut, and of how many; (0, 0) where that is not known."""
    cut, n = get(evaluation, "cut"), get(evaluation, "n")
    return (cut, n) if isinstance(cut, int) and isinstance(n, int) and 0 <= cut <= n else (0, 0)


def scores_of(evaluation: Mapping[str, Any] | None) -> dict[str, Score]:
    """The metrics of an *_evaluation.json, the main one first."""
    metrics, n, main = get(evaluation, "metrics"), get(evaluation, "n"), get(evaluation, "main_metric")
    if not isinstance(metrics, dict):
        return {}
    names = sorted(metrics, key=lambda name: name != main)
    return {
        name: score(name, metrics[name], n, get(evaluation, "intervals", name))
        for name in names
        if is_value(name, metrics[name])
    }


def score(metric: str, value: float, n: Any, stored: Any) -> Score:
    """A score with the interval that the run has stored; without one Wilson's, if it is a share of right answers."""
    n = n if is_number(n) and isinstance(n, int) and n > 0 else None
    is_interval = isinstance(stored, list) and len(stored) == 2 and all(is_value(metric, end) for end in stored)
    if is_interval and stored[0] <= stored[1]:
        return Score(float(value), n, float(stored[0]), float(stored[1]), "bootstrap")
    if n is None or metric not in ZERO_OR_ONE or not 0 <= value <= 1:
        return Score(float(value), n)
    return Score(float(value), n, *wilson(value, n), "Wilson")


def in_percent(rows: Sequence[Row]) -> set[str]:
    """The metrics that are shown in percent, each in all rows or in none."""
    values: dict[str, list[float]] = {}
    for row in rows:
        for found in (row.scores, row.base):
            for name, score in found.items():
                values.setdefault(name, []).append(score.value)
    return {name for name, known in values.items() if is_share(name, known)}


def about_intervals(rows: Iterable[Row], metric: str | None) -> str:
    """How the intervals of a metric were found, in a sentence; nothing where there are none."""
    scores = [found for row in rows if (found := row.scores.get(metric or "")) and found.seeds is None]
    count = Counter(score.method for score in scores)
    if not count["bootstrap"] and not count["Wilson"]:
        return ""
    told = ["bootstrap over examples"] if count["bootstrap"] else []
    if count["Wilson"]:
        told.append(f"Wilson's for {count['Wilson']:,} that stored none")
    if count[None]:
        told.append(f"no interval for {count[None]:,} that stored none")
    return f"95 % intervals: {'; '.join(told)}."


def about_ranks(rows: Iterable[Row]) -> str:
    """Over how many data sets the mean ranks are, in a sentence; nothing where there are none."""
    found = next((row.scores[MEAN_RANK] for row in rows if MEAN_RANK in row.scores), None)
    return f"mean rank: over the {found.n} data sets that all suites have, 1 is the best." if found else ""


def main_metric(rows: Iterable[Row], wanted: str | None, evaluation: str) -> str | None:
    """The metric to sort by: the one asked for, else the main one of most runs, else a loss.

    Raises:
        UserError: no run has the metric that was asked for.
    """
    rows = list(rows)
    if wanted is not None:
        known = {name for row in rows for name in row.scores}
        if wanted not in known and known:
            raise unknown("compare.metric", wanted, known)
        return wanted
    count = Counter(get(row.run.evaluations.get(evaluation), "main_metric") for row in rows)
    count.pop(None, None)
    if count:
        return str(count.most_common(1)[0][0])
    if any(MEAN_RANK in row.scores for row in rows):
        return MEAN_RANK
    if suites := suite_metrics(rows, evaluation):
        return suites[0]
    return next((loss for loss in LOSSES if any(loss in row.scores for row in rows)), None)


def sort_rows(rows: Iterable[Row], metric: str | None) -> list[Row]:
    """Best first (losses and ranks: smallest first); then what has no value, the finished before the failed."""
    sign = 1.0 if metric in LOWEST_FIRST else -1.0

    def place(row: Row) -> tuple[bool, float, int, str]:
        found = row.scores.get(metric or "")
        order = UNFINISHED.index(row.run.status) + 1 if row.run.status in UNFINISHED else 0
        return found is None, sign * found.value if found else 0.0, order, str(row.run.directory)

    return sorted(rows, key=place)


def varying(options: Iterable[Mapping[str, Any]], ignored: Sequence[str]) -> list[str]:
    """Options with at least two values among the runs; one that some runs lack is not different.

    Args:
        ignored: options and whole groups that change no result.
    """
    seen: dict[str, set[str]] = {}
    for values in options:
        for option, value in values.items():
            seen.setdefault(option, set()).add(plain(value))
    ignored = tuple(ignored)
    return [
        option
        for option, values in sorted(seen.items())
        if len(values) > 1 and option not in ignored and option.partition(".")[0] not in ignored
    ]


def short_options(options: Sequence[str]) -> dict[str, str]:
    """Option -> its name without its group, `peft.r` -> `r`, unless another has the same."""
    count = Counter(option.partition(".")[2] for option in options)
    return {option: end if (end := option.partition(".")[2]) and count[end] == 1 else option for option in options}


def plain(value: Any) -> str:
    """A configuration value as text, numbers in their shortest form."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def mark_differences(rows: Sequence[Row], evaluation: str) -> None:
    """Mark each row that was evaluated on other data, another split, or another sample than most are."""
    for member in dict.fromkeys(["", *(name for row in rows for name in row.run.suite)]):
        _mark_differences(rows, evaluation, member)


def _mark_differences(rows: Sequence[Row], evaluation: str, member: str) -> None:
    """The same for a data set of their suites, or for the runs' own."""
    described = {
        id(row): _evaluated_on(row.run, evaluation, member) for row in rows if row.run.evaluated(member).get(evaluation)
    }
    of = f" ({member})" if member else ""
    for label in ("data", "split", "sample", "n"):
        values = Counter(what[label] for what in described.values() if what[label] is not None)
        if len(values) < 2:
            continue
        usual = values.most_common(1)[0][0]
        for row in rows:
            value = described.get(id(row), {}).get(label)
            if value not in (None, usual):
                row.marks.append(f"n is {value:,}, not {usual:,}{of}" if label == "n" else f"other {label}{of}")


def _evaluated_on(run: RunFiles, evaluation: str, member: str) -> dict[str, Any]:
    result = run.evaluated(member).get(evaluation)
    data = get(result, "data_fingerprint") or (None if member else run.get("data", "fingerprint"))
    return {
        "data": None if data is None else plain(data),
        "split": get(result, "split"),
        "sample": get(result, "sample"),
        "n": get(result, "n"),
    }


def group_seeds(rows: Iterable[Row], ignored: Sequence[str]) -> list[Row]:
    """One row for all runs that differ by their seed only: each score is the mean over seeds, with its deviation.

    Where a seed was run more than once, its newest finished run counts.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    sweeps: dict[tuple[Any, ...], tuple[Any, ...]] = {}  # what a point of a sweep is but for its seed: its group
    for row in sorted(rows, key=lambda row: row.run.status == "pending"):
        same = tuple(
            (option, plain(value))
            for option, value in sorted(row.run.options.items())
            if option != "seed" and option not in ignored and option.partition(".")[0] not in ignored
        )
        # A run without options is alone, and scores on other data are never averaged with these.
        key = (same, tuple(row.marks)) if same else (str(row.run.directory),)
        overrides = [str(text) for text in row.run.get("overrides") or []]
        point = (row.run.directory.parent, frozenset(text for text in overrides if not text.startswith("seed=")))
        if row.run.status == "pending":  # it has no other options yet than its overrides
            key = sweeps.get(point, key)
        sweeps.setdefault(point, key)
        groups.setdefault(key, []).append(row)
    return [_group(members) if len(members) > 1 else members[0] for members in groups.values()]


def _group(members: list[Row]) -> Row:
    by_seed: dict[str, Row] = {}
    for row in sorted(members, key=lambda row: (row.run.status == "done", str(row.run.get("created")))):
        if row.scores:
            by_seed[plain(row.run.options.get("seed"))] = row
    counted = sorted(by_seed.values(), key=lambda row: (row.run.status != "done", row.name))
    first = counted[0] if counted else members[0]
    return Row(
        run=first.run,
        name=f"{first.name} +{len(members) - 1}",
        scores=_means([row.scores for row in counted]),
        base=_means([row.base for row in counted]),
        seconds=_mean([row.seconds for row in counted]),
        samples_per_s=_mean([row.samples_per_s for row in counted]),
        memory_gib=max((row.memory_gib for row in counted if row.memory_gib is not None), default=None),
        undefined=first.undefined,
        cut=(sum(row.cut[0] for row in counted), sum(row.cut[1] for row in counted)),
        marks=first.marks,
        members=members,
    )


def _means(scores: Sequence[Mapping[str, Score]]) -> dict[str, Score]:
    means = {}
    for name in dict.fromkeys(name for found in scores for name in found):
        known = [found[name] for found in scores if name in found]
        mean, deviation = mean_and_deviation([score.value for score in known])
        means[name] = Score(mean, known[0].n, seeds=len(known), deviation=deviation)
    return means


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean_and_deviation(known)[0] if known else None


def is_number(value: Any) -> bool:
    """Whether a value from a JSON file is a finite number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def is_value(metric: str, value: Any) -> bool:
    """Whether a value from a JSON file can be that of a metric; one of ours has a range."""
    return is_number(value) and (metric not in LABELS or 0 <= value <= HIGHEST.get(metric, 1.0))


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (divided by n - 1); None for a single value.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("There are no values.")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
