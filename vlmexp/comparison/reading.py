"""Run directories as they are found on disk: finished, failed, half-written, of older versions or other machines.

Nothing here raises for what a run directory lacks: a run that cannot be read is a run with the status `broken`.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from vlmexp.errors import UserError, closest
from vlmexp.files import is_locked, read_json, read_jsonl

EVALUATIONS = {"base": "base_vlm_model", "finetuned": "finetuned_vlm_model"}  # our name: how its files start
# What the values that are read here are; one that is something else, in a damaged file, is left out and named.
RECORD = {
    "attempts": list, "overrides": list, "stages": dict, "result": dict, "data": dict, "packages": dict, "git": dict,
    "hardware": dict, "model": dict, "suite": dict,
}  # fmt: skip
EVALUATION = {
    "n": int, "metrics": dict, "intervals": dict, "main_metric": str, "by": dict, "split": str, "sample": str,
    "data_fingerprint": str, "cut": int, "undefined": dict,
}  # fmt: skip
UNFINISHED = ("failed", "lost", "broken", "preempted", "pending", "running")
WITHOUT_RESULT = ("preview", "predict")  # stages of run directories that there is nothing to compare in
_Loader: type = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one written in C is ten times as fast


@dataclass(frozen=True)
class RunFiles:
    """What the files of one run directory say.

    Attributes:
        status: done, failed, preempted, running, lost (running without a sign of life), pending (a point of a sweep
            that has not started) or broken (run.json cannot be read).
        error: why a failed run failed, or what is wrong with the files; else empty.
        record: the content of run.json.
        options: dotted option -> value, for every leaf of the resolved configuration.
        evaluations: base, finetuned -> the content of its *_evaluation.json.
        suite: data set -> the same of each data set of the run's suite, in their order.
        metrics: the rows of metrics.jsonl.
    """

    directory: Path
    status: str
    error: str = ""
    record: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    metrics: Sequence[Mapping[str, Any]] = ()
    suite: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)

    def get(self, *path: str) -> Any:
        """A value inside run.json; None where any part of the path is missing."""
        return get(self.record, *path)

    def predictions(self, evaluation: str, member: str = "") -> Path:
        """Where the predictions of an evaluation, or of a suite's data set in it, are, if there are any."""
        return _folder(self.directory, member) / f"{EVALUATIONS[evaluation]}_predictions.jsonl"

    def evaluated(self, member: str = "") -> Mapping[str, Mapping[str, Any]]:
        """The evaluations of a data set of the suite, or of the run's own."""
        return self.suite.get(member, {}) if member else self.evaluations


def get(value: Any, *path: str) -> Any:
    """A value inside nested mappings; None where any part of the path is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def find_runs(folders: Iterable[Path], lost_after_s: float) -> list[RunFiles]:
    """Every run below the folders that has something to compare, and every point that a sweep has not started.

    Args:
        folders: run directories, sweeps, or folders that hold some at any depth.
        lost_after_s: a run that has been silent for longer counts as lost; at once does one whose process was one of
            this machine and is gone.
    """
    found: dict[Path, RunFiles] = {}
    for folder in folders:
        for parent, folders_inside, files in os.walk(folder):
            directory = Path(parent)
            if "run.json" in files:
                folders_inside.clear()  # a run holds no runs, and its folders may be renamed under our eyes
                run = read_run(directory, lost_after_s)
                if run.get("stage") not in WITHOUT_RESULT:
                    found[directory.resolve()] = run
            elif "points.jsonl" in files:
                found |= {run.directory.resolve(): run for run in _pending_points(directory)}
    return [found[directory] for directory in sorted(found)]


def read_run(directory: Path, lost_after_s: float) -> RunFiles:
    """Read one run directory; whatever goes wrong with it makes it a broken one."""
    try:
        return _read_run(directory, lost_after_s)
    except Exception as error:
        return RunFiles(directory, "broken", f"it cannot be read: {type(error).__name__}: {error}")


def _read_run(directory: Path, lost_after_s: float) -> RunFiles:
    try:
        record = read_json(directory / "run.json")
        if not isinstance(record, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError) as error:
        return RunFiles(directory, "broken", f"run.json cannot be read: {error}")
    record, problem = _shaped(record, RECORD, "run.json")
    record["overrides"] = [str(override) for override in record.get("overrides", [])]
    status, text = str(record.get("status", "broken")), str(record.get("error", ""))
    silent_s = _seconds_since(record.get("heartbeat"))
    if status == "running" and (silent_s > lost_after_s or _is_gone(record, directory)):
        status, text = "lost", f"silent for {_span(silent_s)}"
    options = {}
    try:
        options = leaves(yaml.load((directory / "config.resolved.yaml").read_text(encoding="utf-8"), _Loader))
    except (OSError, ValueError, yaml.YAMLError) as error:
        problem = f"config.resolved.yaml cannot be read: {' '.join(str(error).split())}"
    evaluations, unfit = _evaluations(directory)
    problem = problem or unfit
    suite = {}
    for name in map(str, record.get("suite", {})):
        if not {"..", "."} & set(name.split("/")):
            suite[name], unfit = _evaluations(directory, name)
            problem = problem or (f"{name}: {unfit}" if unfit else "")
    metrics: list[Any] = []
    try:
        metrics = [row for row in read_jsonl(directory / "metrics.jsonl") if isinstance(row, dict)]
    except (OSError, ValueError) as error:
        problem = f"metrics.jsonl cannot be read: {error}"
    return RunFiles(directory, status, text or problem, record, options, evaluations, metrics, suite)


def _folder(directory: Path, member: str) -> Path:
    return directory / "suite" / member / "evaluation" if member else directory / "evaluation"


def _evaluations(directory: Path, member: str = "") -> tuple[dict[str, dict[str, Any]], str]:
    """What is in the files *_evaluation.json of a run or of a data set of its suite, and what is wrong with one."""
    evaluations, problem = {}, ""
    for name, stem in EVALUATIONS.items():
        path = _folder(directory, member) / f"{stem}_evaluation.json"
        try:
            content = read_json(path)
            if not isinstance(content, dict):
                raise ValueError("it holds no object")
            evaluations[name], unfit = _shaped(content, EVALUATION, path.name)
            problem = problem or unfit
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            problem = f"{path.name} cannot be read: {error}"
    return evaluations, problem


def _shaped(content: Mapping[str, Any], kinds: Mapping[str, type], file: str) -> tuple[dict[str, Any], str]:
    """The content without the values that are not of their kind, and which these are."""
    unfit = [
        name
        for name, kind in kinds.items()
        if content.get(name) is not None and type(content[name]) is not kind  # true is no int here
    ]
    kept = {name: value for name, value in content.items() if name not in unfit and value is not None}
    return kept, f"{file} is damaged at: {', '.join(unfit)}" if unfit else ""


def _is_gone(record: Mapping[str, Any], directory: Path) -> bool:
    """Whether the run's last attempt was a process of this machine and is there no more.

    One of another container with the same host name has no process that can be seen, but it holds its lock.
    """
    attempts = record.get("attempts")
    last = attempts[-1] if isinstance(attempts, list) and attempts else None
    pid = get(last, "pid")
    if get(last, "host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return not is_locked(directory / ".lock")
    except OSError:  # another user's
        return False
    return False


def _pending_points(sweep: Path) -> Iterator[RunFiles]:
    """The points of a sweep that have no run.json; their options are what their overrides say."""
    try:
        points = read_jsonl(sweep / "points.jsonl", growing=False)
        for point in points:
            directory = sweep / str(point["directory"])
            if not (directory / "run.json").exists():
                options = dict(map(_override, point.get("overrides", [])))
                yield RunFiles(directory, "pending", "not started", {"overrides": point["overrides"]}, options)
    except (OSError, ValueError, KeyError, TypeError) as error:
        yield RunFiles(sweep / "points.jsonl", "broken", f"points.jsonl cannot be read: {error!r}")


def _override(text: str) -> tuple[str, Any]:
    option, _, value = str(text).lstrip("+~").partition("=")
    with contextlib.suppress(ValueError):  # YAML 1.1 takes 1e-5 for a text
        return option, int(value) if value.lstrip("-").isdigit() else float(value)
    try:
        return option, yaml.load(value, _Loader)
    except yaml.YAMLError:
        return option, value


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Dotted option -> value; lists count as values, written as JSON."""
    if isinstance(value, dict) and (value or not path):
        return {
            key: leaf
            for name, inner in value.items()
            for key, leaf in leaves(inner, f"{path}.{name}" if path else str(name)).items()
        }
    if not path:
        raise ValueError("it holds no options")
    return {path: json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value}


def expand(given: Sequence[str], defaults: Sequence[Path]) -> list[Path]:
    """The folders that `compare.runs` names: directories or globs; none given: those of the defaults that exist.

    Raises:
        UserError: nothing is there.
    """
    if not given:
        return [folder for folder in defaults if folder.is_dir()]
    found: list[Path] = []
    for text in given:
        path = Path(text).expanduser()
        anchor = Path(path.anchor) if path.is_absolute() else Path()
        matches = [path] if path.is_dir() else sorted(p for p in _glob(anchor, path) if p.is_dir())
        if not matches:
            raise UserError(
                f"compare.runs: there is no directory {text}; name run directories, sweeps or folders of them, "
                "with * for several."
            )
        found += matches
    return found


def _glob(anchor: Path, path: Path) -> Iterable[Path]:
    pattern = str(path.relative_to(anchor))
    return anchor.glob(pattern) if pattern not in ("", ".") else []


def short_names(directories: Sequence[Path]) -> list[str]:
    """The shortest end of each path that no other path has: `3`, or `12-30-00-000000/3` where two sweeps have a 3."""
    parts = [directory.parts for directory in directories]
    names: dict[int, str] = {}
    for depth in range(1, max(map(len, parts), default=0) + 1):
        count = Counter(part[-depth:] for part in parts)
        for index, part in enumerate(parts):
            if index not in names and (count[part[-depth:]] == 1 or len(part) <= depth):
                names[index] = "/".join(part[-depth:])
    return [names[index] for index in range(len(parts))]


def find_run(text: str, runs: Sequence[RunFiles], lost_after_s: float, option: str) -> RunFiles:
    """The run that a text names: a run directory, its id, or the end of its path.

    Raises:
        UserError: no run or several are meant; the message lists some.
    """
    if (Path(text).expanduser() / "run.json").exists():
        return read_run(Path(text).expanduser(), lost_after_s)
    wanted = tuple(part for part in text.split("/") if part)
    matches = [run for run in runs if run.get("id") == text or run.directory.parts[-len(wanted) :] == wanted]
    if len(matches) == 1:
        return matches[0]
    names = short_names([run.directory for run in runs])
    if matches:
        several = ", ".join(str(run.directory) for run in matches[:5])
        raise UserError(f"{option}: {text!r} is the end of {len(matches)} runs: {several}.")
    listing = f" There are: {', '.join(names[:8])}{', …' if len(names) > 8 else ''}." if names else ""
    raise UserError(f"{option}: there is no run {text!r}{closest(text, names) or '.'}{listing}")


def seconds(run: RunFiles) -> float | None:
    """Time that the attempts of a run took; one that ended without a word counts until its last sign of life."""
    total, known = 0.0, False
    attempts = [a for a in run.get("attempts") or [] if isinstance(a, dict)]
    for number, attempt in enumerate(attempts):
        last = run.get("heartbeat") if number == len(attempts) - 1 else None
        start, end = _time(attempt.get("started")), _time(attempt.get("ended") or last)
        if start and end:
            total, known = total + (end - start).total_seconds(), True
    return total if known else None


def _time(text: Any) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except (TypeError, ValueError):
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _seconds_since(text: Any) -> float:
    time = _time(text)
    return float("inf") if time is None else (datetime.now(UTC) - time).total_seconds()


def _span(span_s: float) -> str:
    if span_s == float("inf"):
        return "an unknown time"
    if span_s < 60:
        return f"{span_s:.0f} s"
    return f"{span_s / 86400:.0f} days" if span_s > 172_800 else f"{span_s / 60:.0f} min"
