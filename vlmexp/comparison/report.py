"""The HTML report: one file that needs no network, with everything that is known of the runs inside."""

from __future__ import annotations

import html
import json
import random
import re
import shlex
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from vlmexp.comparison.paired import Prediction, pair, read_predictions
from vlmexp.comparison.reading import RunFiles, get, leaves
from vlmexp.comparison.rows import (
    Row,
    Score,
    about_intervals,
    about_ranks,
    in_percent,
    is_number,
    plain,
    short_options,
    varying,
)
from vlmexp.comparison.thumbnails import find_media, thumbnail
from vlmexp.errors import UserError
from vlmexp.files import json_text
from vlmexp.report import LABELS, LOWEST_FIRST

ANSWERING_RUNS = 20  # whose predictions are in the report
CURVE_RUNS = 50
CURVES = (
    "loss",
    "eval_loss",
    "learning_rate",
    "grad_norm",
    "samples_per_s",
    "tokens_per_s",
    "mfu",
    "data_wait",
    "memory_gib",
)
CURVE_POINTS = 300  # of a curve, evenly chosen
RECORDED = ("packages", "git", "data", "hardware", "model")


def build_report(
    rows: Sequence[Row],
    metric: str | None,
    evaluation: str,
    ignored: Sequence[str],
    data_dir: Path,
    max_examples: int,
    seed: int,
) -> str:
    """The page as text.

    Args:
        rows: the runs, best first.
        metric: the one that the runs are sorted by; of NAME/METRIC, the answers shown are those to that data set.
        evaluation: base or finetuned, whose answers are shown.
        ignored: groups of options that change no result.
        data_dir: where prepared data are, for runs from another machine.
        max_examples: how many examples the browser holds, as a random sample chosen by `seed`.
    """
    member, _, judged = (metric or "").rpartition("/")
    answering = [row for row in rows if row.run.predictions(evaluation, member).is_file()]
    answers = {id(row): _readable(row.run, evaluation, member) for row in answering[:ANSWERING_RUNS]}
    keys = varying([row.run.options for row in rows], ignored)
    content: dict[str, Any] = {
        "metric": metric,
        "labels": LABELS,
        "losses": LOWEST_FIRST,
        "shares": sorted(in_percent(rows)),
        "evaluation": evaluation,
        "options": keys,
        "short": short_options(keys),
        **_recorded([row.run for row in rows], ignored),
        "runs": [_run(row, metric, evaluation, keys) for row in rows],
        "intervals": " ".join(filter(None, (about_intervals(rows, metric), about_ranks(rows)))),
        "judge": None,
        "notes": [],
    }
    for entry in content["runs"][CURVE_RUNS:]:
        entry["curves"] = {}
    if len(rows) > CURVE_RUNS:
        content["notes"].append(f"Curves are of the best {CURVE_RUNS} runs.")
    judge = _example_metric(answers, judged or metric)
    if judge is not None:
        content["judge"] = f"{member}/{judge}" if member else judge
        _add_tests(content, rows, answers, judge, seed)
        _add_examples(content, rows, answers, judge, max_examples, seed, data_dir, member)
    if len(answering) > ANSWERING_RUNS:
        content["notes"].append(f"Answers and tests are of the best {ANSWERING_RUNS} of {len(answering)} runs.")
    title = f"{len(rows):,} {'run' if len(rows) == 1 else 'runs'}, {datetime.now(UTC):%Y-%m-%d %H:%M} UTC"
    return _page(title, content)


def _page(title: str, content: Mapping[str, Any]) -> str:
    """Fill the page's template; what is filled in is not searched for places to fill."""
    folder = resources.files("vlmexp.comparison") / "page"
    parts = {
        "TITLE": html.escape(title),
        "STYLE": (folder / "report.css").read_text(encoding="utf-8"),
        "SCRIPT": (folder / "report.js").read_text(encoding="utf-8"),
        "PLOTLY": get_plotlyjs(),
        "DATA": as_script(content),
    }
    template = (folder / "report.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def as_script(content: Any) -> str:
    """JSON that no text in it can end: the browser takes `<` for nothing but a letter of a string."""
    return json_text(content, separators=(",", ":")).replace("<", "\\u003c")


def _recorded(runs: Sequence[RunFiles], ignored: Sequence[str]) -> dict[str, Any]:
    """Whatever is recorded of the runs and not the same in all of them, for the comparison of two."""
    recorded = []
    for run in runs:
        values = {name: value for name, value in run.options.items() if name.partition(".")[0] not in ignored}
        values |= leaves({name: value for name in RECORDED if isinstance(value := run.get(name), dict)})
        recorded.append({name: plain(value) for name, value in values.items()})
    names = dict.fromkeys(name for values in recorded for name in values)
    differing = [name for name in names if len({values.get(name) for values in recorded}) > 1]
    return {
        "differing": differing,
        "recorded": [[values.get(name) for name in differing] for values in recorded],
    }


def _run(row: Row, metric: str | None, evaluation: str, options: Sequence[str]) -> dict[str, Any]:
    run = row.run
    found, before = row.scores.get(metric or ""), row.base.get(metric or "")
    return {
        "name": row.name,
        "directory": str(run.directory),
        "command": shlex.join(["python", "-m", "vlmexp", *map(str, run.get("overrides") or [])]),
        "status": row.status,
        "note": row.note,
        "marks": row.marks,
        "options": {option: plain(run.options[option]) for option in options if option in run.options},
        "score": _score(found),
        "base": before.value if before else None,
        "scores": {name: value.value for name, value in row.scores.items()},
        "seconds": row.seconds,
        "rate": row.samples_per_s,
        "memory": row.memory_gib,
        "cut": row.cut[0] if row.cut[1] else None,
        "undefined": {name: str(reason) for name, reason in row.undefined.items()},
        "by": _by(run, metric, evaluation),
        "curves": {name: curve for name in _curve_names(run) if (curve := _curve(run, name))},
        "test": None,
        "answers": None,
        "baseAnswers": None,
    }


def _score(found: Score | None) -> dict[str, Any] | None:
    return None if found is None else {"value": found.value, "n": found.n, "low": found.low, "high": found.high}


def _by(run: RunFiles, metric: str | None, evaluation: str) -> dict[str, dict[str, Any]]:
    """Metadata column -> its value -> [score, n]."""
    member, _, metric = (metric or "").rpartition("/")
    by = get(run.evaluated(member).get(evaluation), "by")
    return {
        column: {
            value: [_number(entry, "metrics", str(metric)), _number(entry, "n")] for value, entry in groups.items()
        }
        for column, groups in (by or {}).items()
        if isinstance(groups, dict)
    }


def _curve_names(run: RunFiles) -> list[str]:
    """What may be drawn over the steps of a run; of the evaluations, whatever they measured."""
    measured = sorted({str(name) for row in run.metrics for name in row if str(name).startswith("eval_")})
    return list(dict.fromkeys([*CURVES, *(name for name in measured if name != "eval_n")]))


def _curve(run: RunFiles, name: str) -> list[list[float]] | None:
    """[steps, values] of what was logged, thinned to CURVE_POINTS."""
    points = [(row["step"], row[name]) for row in run.metrics if name in row and "step" in row]
    finite = [(step, value) for step, value in points if is_number(step) and is_number(value)]
    every = max(1, -(-len(finite) // CURVE_POINTS))
    kept = finite[::every]
    return [[step for step, _ in kept], [value for _, value in kept]] if kept else None


def _readable(run: RunFiles, evaluation: str, member: str) -> dict[str, Prediction]:
    try:
        return read_predictions(run.predictions(evaluation, member))
    except UserError:  # a file that cannot be read is a run without answers
        return {}


def _example_metric(answers: Mapping[int, dict[str, Prediction]], metric: str | None) -> str | None:
    """What single examples are judged by: the metric of the page, or their first if they have no such (a loss)."""
    scores = next((row.get("scores") or {} for found in answers.values() for row in found.values()), {})
    return metric if metric in scores else next(iter(scores), None)


def _reference(rows: Sequence[Row], answers: Mapping[int, dict[str, Prediction]]) -> Row | None:
    """The best run with answers, if possible one that was evaluated on what most runs were evaluated on."""
    answering = [row for row in rows if answers.get(id(row))]
    return min(answering, key=lambda row: bool(row.marks), default=None)


def _add_tests(
    content: dict[str, Any], rows: Sequence[Row], answers: Mapping[int, dict[str, Prediction]], metric: str, seed: int
) -> None:
    """Against the best run, on the examples that both answered."""
    best = _reference(rows, answers)
    for row, entry in zip(rows, content["runs"], strict=True):
        if best is None or row is best or not answers.get(id(row)):
            continue
        try:
            found = pair(answers[id(best)], answers[id(row)], metric, seed)
        except UserError:  # nothing in common, or no such metric for a single example
            continue
        entry["test"] = {
            "n": found.n, "gains": found.gains, "losses": found.losses, "p": found.p,
            "difference": found.difference, "low": found.low, "high": found.high,
        }  # fmt: skip


def _add_examples(
    content: dict[str, Any],
    rows: Sequence[Row],
    answers: Mapping[int, dict[str, Prediction]],
    metric: str,
    max_examples: int,
    seed: int,
    data_dir: Path,
    member: str,
) -> None:
    """A sample of the best run's examples with every run's answers; equal columns of answers are stored once."""
    source = _reference(rows, answers)
    if source is None:
        return
    everything = answers[id(source)]
    names = list(everything)
    if len(names) > max_examples:
        names = [names[index] for index in sorted(random.Random(seed).sample(range(len(names)), max_examples))]
        content["notes"].append(f"The examples are a random sample of {max_examples:,} of {len(everything):,}.")
    examples = [everything[name] for name in names]
    columns: dict[str, int] = {}
    for row, entry in zip(rows, content["runs"], strict=True):
        for field, found in (("answers", answers.get(id(row))), ("baseAnswers", _base(row, answers, member))):
            if found:
                column = json.dumps(
                    [_answer(found.get(n), example, metric) for n, example in zip(names, examples, strict=True)]
                )
                entry[field] = columns.setdefault(column, len(columns))
    pictures = _pictures(source.run, examples, data_dir, member)
    missing = sum(1 for e in examples if e.get("images") and not any(pictures.get(str(i)) for i in e["images"]))
    if missing:
        content["notes"].append(f"The images of {missing:,} examples are no longer where the run found them.")
    content["columns"] = [json.loads(column) for column in columns]
    content["pictures"] = pictures
    content["examples"] = [
        {
            "id": str(e["id"]),
            "question": str(e.get("question", "")),
            "answers": [str(answer) for answer in e.get("answers", [])],
            "images": [str(image) for image in e.get("images", [])],
        }
        for e in examples
    ]


def _base(row: Row, answers: Mapping[int, dict[str, Prediction]], member: str) -> dict[str, Prediction]:
    return _readable(row.run, "base", member) if answers.get(id(row)) else {}


def _answer(found: Prediction | None, example: Prediction, metric: str) -> list[Any] | None:
    """[answer, score]; None where the run was not asked this question."""
    if found is None or found.get("question") != example.get("question"):
        return None
    return [str(found.get("prediction", "")), _number(found, "scores", metric)]


def _number(value: Any, *path: str) -> float | None:
    number = get(value, *path)
    return number if is_number(number) else None


def _pictures(run: RunFiles, examples: Sequence[Prediction], data_dir: Path, member: str) -> dict[str, str]:
    """Name of an image -> its thumbnail as a data URI."""
    recorded = run.get("suite", member, "data", "folder") if member else run.get("data", "folder")
    folders = [Path(recorded), data_dir / Path(recorded).name] if isinstance(recorded, str) else [data_dir]
    found = {}
    for name in dict.fromkeys(str(image) for example in examples for image in example.get("images", [])):
        path = find_media(name, folders)
        picture = thumbnail(path) if path else None
        if picture:
            found[name] = picture
    return found
