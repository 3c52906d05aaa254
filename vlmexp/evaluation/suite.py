"""What a suite came to: one table of all data sets, base → fine-tuned, and what was lost elsewhere."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vlmexp.config import Config
from vlmexp.evaluation.intervals import numbered, resampled_mean
from vlmexp.files import read_json, read_jsonl
from vlmexp.report import LABELS, NONE, is_share, print_paths, shown_score
from vlmexp.runs import Run
from vlmexp.screen import Screen
from vlmexp.suites import FOLDER, evaluated

BASE, FINETUNED = "base_vlm_model", "finetuned_vlm_model"
ALIKE = ("data_fingerprint", "split", "sample", "n", "main_metric")  # of two evaluations that can be compared
RESAMPLES = 10_000
Line = Mapping[str, Any]  # of *_predictions.jsonl


@dataclass(frozen=True)
class Gain:
    """A data set before and after the fine-tuning, in its main metric.

    Attributes:
        media: how many different media the questions are about.
        low, high: the 95 % bootstrap interval of the gain, or of the only value; None of a metric that single questions
            have no value of.
    """

    name: str
    metric: str | None
    n: int
    media: int
    base: float | None
    finetuned: float | None
    low: float | None = None
    high: float | None = None

    @property
    def gain(self) -> float | None:
        return None if self.base is None or self.finetuned is None else self.finetuned - self.base

    @property
    def verdict(self) -> str:
        """What became of it, in a word or two; nothing where one of the two values is missing."""
        if self.gain is None:
            return ""
        if self.low is None or self.high is None:
            return "lower" if self.gain < 0 else "higher" if self.gain > 0 else "equal"
        if self.low <= 0 <= self.high:
            return "lower, may be luck" if self.gain < 0 else "may be luck" if self.gain else "equal"
        return "LOST" if self.gain < 0 else "gained"


def take_over(done: Mapping[str, Any], run: Run, part: Run, name: str) -> dict[str, Any]:
    """Copy what the run's own data set has, which the suite names as well; nothing of it is asked again."""
    if run.is_main:
        part.path("evaluation").mkdir(parents=True, exist_ok=True)
        for end in ("evaluation.json", "predictions.jsonl"):
            shutil.copyfile(run.path("evaluation", f"{name}_{end}"), part.path("evaluation", f"{name}_{end}"))
    part.update(data=run.record["data"])
    asked = sum(done["answers"].values())
    kept = {key: done[key] for key in ("n", "metrics", "trained_by") if key in done}
    return {**kept, "answers": {"generated": 0, "taken_from_disk": asked}}


def gains(config: Config, run: Run) -> list[Gain]:
    """One for each data set that the run has evaluated; its own and one of the suite that is the same count once."""
    every = evaluated(config, run)
    twice = [part for each, part in every if part is run and any(c.dataset == each.dataset for c, _ in every[1:])]
    own = f"{config.dataset.name} (trained on)"
    return [_gain(part.name.removesuffix("/") or own, part) for _, part in every if part not in twice]


def _gain(name: str, part: Run) -> Gain:
    after = _evaluation(part.directory, FINETUNED)
    before, folder = _before(part, after)
    result = after or before or {}
    main, values = result.get("main_metric"), [(found or {}).get("metrics", {}) for found in (before, after)]
    interval = result.get("intervals", {}).get(main)
    if main and before and after:
        rows = [read_jsonl(place / "evaluation" / f"{stem}_predictions.jsonl") for place, stem in (
            (folder, BASE), (part.directory, FINETUNED),
        )]  # fmt: skip
        interval = gain_interval(rows[0], rows[1], main)
    low, high = interval or (None, None)
    n = result.get("n", 0)
    return Gain(name, main, n, result.get("n_media", n), values[0].get(main), values[1].get(main), low, high)


def _before(part: Run, after: Line | None) -> tuple[Line | None, Path]:
    """The evaluation of the base model that belongs beside the other one, of this run or of the training's."""
    if (own := _evaluation(part.directory, BASE)) is not None or after is None:
        return own, part.directory
    trained_by = Path((part.stage_result("eval_finetuned") or {}).get("trained_by", part.directory))
    for folder in (trained_by / FOLDER / part.name, trained_by):
        found = _evaluation(folder, BASE)
        if found is not None and all(found.get(key) == after.get(key) for key in ALIKE):
            return found, folder
    return None, part.directory


def _evaluation(folder: Path, name: str) -> Line | None:
    path = folder / "evaluation" / f"{name}_evaluation.json"
    return read_json(path) if path.is_file() else None  # type: ignore[no-any-return]


def gain_interval(before: Sequence[Line], after: Sequence[Line], metric: str) -> tuple[float, float] | None:
    """The 95 % bootstrap interval of the mean gain over the same questions, of which those about one image are drawn
    together; None if single questions have no value.

    >>> gain_interval([{"id": "1", "scores": {"m": 0}}], [{"id": "1", "scores": {"m": 1}}], "m")
    (1.0, 1.0)
    """
    had = {row["id"]: row["scores"].get(metric) for row in before}
    pairs = [(had.get(row["id"]), row["scores"].get(metric)) for row in after]
    if not pairs or any(old is None or new is None for old, new in pairs):
        return None
    about = numbered([_media(row) for row in after])
    return resampled_mean([new - old for old, new in pairs], about, RESAMPLES)


def _media(row: Line) -> object:
    """What a question is about; None if it is about no media."""
    shown = [tuple(row.get(kind) or ()) for kind in ("images", "videos")]
    return tuple(shown) if any(shown) else None


def suite_result(config: Config, run: Run, name: str) -> dict[str, float | None]:
    """The main metric of each data set of the suite, as NAME/METRIC."""
    parts = [part for _, part in evaluated(config, run) if part is not run]
    found = {part.name: read_json(part.path("evaluation", f"{name}_evaluation.json")) for part in parts}
    return {f"{title}{each['main_metric']}": each["metrics"].get(each["main_metric"]) for title, each in found.items()}


def print_suite(config: Config, run: Run) -> None:
    """The table of all data sets, what was lost in red and in words, and where the results are."""
    found = gains(config, run)
    rows = [cells(each) for each in found]
    table = Table(title=Text(f"{config.model.id} on {len(found)} data sets", style="table.title"), title_justify="left")
    shown = [heading for heading in rows[0] if any(row[heading] not in (NONE, "") for row in rows)]
    for heading in shown:
        table.add_column(heading, justify="left" if heading in ("data set", "metric", "verdict") else "right")
    for each, row in zip(found, rows, strict=True):
        table.add_row(*(Text(row[heading]) for heading in shown), style="red" if (each.gain or 0) < 0 else "")
    console = Screen()
    console.print(table)
    if lost := [row for each, row in zip(found, rows, strict=True) if (each.gain or 0) < 0]:
        told = "; ".join(f"{row['data set']} {row['gain']} {row['95 % interval']} ({row['verdict']})" for row in lost)
        console.print(Text(f"Lower after the fine-tuning: {told}.", style="red"), soft_wrap=True)
    print_paths({"suite": run.path(FOLDER)})


def cells(found: Gain) -> dict[str, str]:
    """A row of the table, the gain and its interval in points where the metric is a share."""
    share = is_share(found.metric, [found.base, found.finetuned])
    scale, sign = (100 if share else 1), "" if found.gain is None else "+"
    ends = [f"{scale * end:{sign}.2f}" for end in (found.low, found.high) if end is not None]
    return {
        "data set": found.name,
        "metric": LABELS.get(found.metric or "", found.metric or NONE),
        "n": f"{found.n:,}",
        "images": f"{found.media:,}",
        "base": shown_score(found.base, share),
        "fine-tuned": shown_score(found.finetuned, share),
        "gain": NONE if found.gain is None else f"{scale * found.gain:+.2f}" if share else f"{found.gain:+.4g}",
        "95 % interval": f"[{', '.join(ends)}]" if ends else NONE,
        "verdict": found.verdict,
    }
