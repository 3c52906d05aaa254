"""A sweep on disk: which points it has, which job each was given, and how they stand.

multirun/<day>/<time>/
  points.jsonl     {"point": 3, "overrides": ["peft.r=8"], "directory": "3"}, before anything is submitted
  jobs.jsonl       {"point": 3, "job": "17_3", "queue": "slurm", "submitted": "..."}, a line a submission
  launch.json      the launcher's settings, for a later stage=resume
  search.json      {"arguments": [...]} of a search's command line, for the same
  code/<digest>/   the package and the config folders as they were; the jobs run these
  .submitit/       submitit's own files and each job's output, or how its process ended
  0/  1/  2/       the run directories
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shlex
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from vlmexp.errors import UserError
from vlmexp.files import (
    DamagedFile,
    append_text,
    is_locked,
    read_json,
    read_jsonl,
    through_json,
    write_json,
    write_jsonl,
)
from vlmexp.launch.seal import is_ours, seal_of
from vlmexp.launch.snapshot import contents
from vlmexp.runs import LOST_AFTER_S, now, read_record

ENDING = "ending"  # file in a job's folder that says how its process ended, from whoever waited for it
_LOG_LINES = 4
# Settings of a launcher that a queue of its kind cannot do without.
_SETTINGS = {
    "slurm": ("wait", "cancel_on_interrupt", "max_num_timeout"),
    "local": ("wait", "cancel_on_interrupt", "max_num_timeout", "array_parallelism", "gpus_per_node"),
    "foreground": ("wait", "cancel_on_interrupt"),
}
_Row = TypeVar("_Row")
_Progress = tuple[int | None, int | None, float | None, float | None]


@dataclass(frozen=True)
class Point:
    """One run of a sweep; `directory` is relative to the sweep's."""

    point: int
    overrides: list[str]
    directory: str
    seal: str | None = field(default=None, compare=False)  # of the user whose client wrote it


@dataclass(frozen=True)
class Plan:
    """How a sweep's points are launched.

    Attributes:
        kind: slurm, local or foreground.
        settings: of the launcher, as `hydra.launcher` has them.
        code: the folder with the code that the jobs run, relative to the sweep's.
        hydra_overrides: further command line arguments of each point.
    """

    kind: str
    settings: dict[str, Any]
    code: str
    hydra_overrides: list[str]
    seal: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Standing:
    """How a point stands.

    status is missing (never submitted), pending, running, done, failed, preempted, lost (it ran, no job and no other
    process has it any more, and it wrote no end), or broken (its run.json cannot be read).
    """

    point: Point
    status: str
    job: str | None = None
    record: Mapping[str, Any] | None = None  # its run.json
    step: int | None = None
    steps: int | None = None
    loss: float | None = None
    remaining_s: float | None = None
    reason: str | None = None  # why SLURM has not started it
    silent_s: float | None = None  # since its last sign of life, if that is too long for a run that goes on


class Sweep:
    """The directory of a sweep."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.resolve()

    @classmethod
    def named(cls, text: str) -> Sweep:
        """The sweep that the option `sweep=` names; a UserError if it is none."""
        directory = Path(text).expanduser()
        if not (directory / "points.jsonl").exists():
            found = sorted(directory.glob("**/points.jsonl"))[-5:] if directory.is_dir() else []
            there = f" Below it are: {', '.join(str(path.parent) for path in found)}." if found else ""
            raise UserError(f"sweep={text} is no sweep directory (it has no points.jsonl).{there}")
        return cls(directory)

    @property
    def points(self) -> list[Point]:
        """In the order of their numbers.

        Raises:
            DamagedFile: a row is none of a point, or its directory is not in the sweep's.
        """
        path = self.directory / "points.jsonl"
        return [_read(Point, row, path, _is_point) for row in read_jsonl(path, growing=False)]

    def add(self, all_overrides: Iterable[Sequence[str]]) -> list[Point]:
        """The points with these overrides: those that the sweep has already, new numbers for the others."""
        self.directory.mkdir(parents=True, exist_ok=True)
        points = self.points
        wanted = []
        for overrides in all_overrides:
            found = next((point for point in points if point.overrides == list(overrides)), None)
            if found is None:
                number = max((point.point for point in points), default=-1) + 1
                while (self.directory / str(number)).exists():  # of a sweep that another launcher made here
                    number += 1
                found = Point(number, list(overrides), str(number))
                points.append(found)
            sealed = replace(found, seal=seal_of(self._content(found)))
            points[points.index(found)] = sealed
            wanted.append(sealed)
        write_jsonl(self.directory / "points.jsonl", map(vars, points))
        return wanted

    def varied(self) -> dict[int, str]:
        """Number of a point -> those of its overrides that not all points have."""
        points = self.points
        common = set.intersection(*(set(point.overrides) for point in points)) if len(points) > 1 else set()
        return {point.point: " ".join(text for text in point.overrides if text not in common) for point in points}

    def run_directory(self, point: Point) -> Path:
        return self.directory / point.directory

    def require_settings(self) -> None:
        """Raise DamagedFile if the plan lacks a setting that its points cannot be launched without."""
        lost = [name for name in _SETTINGS[self.plan.kind] if name not in self.plan.settings]
        if lost:
            raise DamagedFile(f"{self.directory / 'launch.json'} is damaged: its settings have no {', '.join(lost)}.")

    def discard_unless_begun(self) -> None:
        """Remove the directory of a sweep that was refused, if it holds nothing but Hydra's multirun.yaml."""
        if [path.name for path in self.directory.glob("*")] == ["multirun.yaml"]:
            shutil.rmtree(self.directory)
            here = Path.cwd()
            for folder in self.directory.absolute().parents[:2]:  # Hydra makes them: of the day, and of all sweeps
                if folder == here or folder in here.parents or any(folder.iterdir()):
                    return
                folder.rmdir()

    @property
    def argument(self) -> str:
        """What names it on the command line, for a shell."""
        return shlex.quote(f"sweep={self.directory}")

    @property
    def plan(self) -> Plan:
        """How it was launched.

        Raises:
            UserError: the file that says so is not there.
        """
        path = self.directory / "launch.json"
        try:
            return _read(Plan, read_json(path), path, _is_plan)
        except FileNotFoundError:
            raise UserError(
                f"{path} is not there, which says how the points are launched: start the sweep's own command again "
                f"with hydra.sweep.dir={self.directory}; what is done is not repeated."
            ) from None

    @plan.setter
    def plan(self, plan: Plan) -> None:
        plan = replace(plan, settings=through_json(plan.settings))
        write_json(self.directory / "launch.json", vars(replace(plan, seal=seal_of(self._content(plan)))))

    @property
    def search(self) -> list[str] | None:
        """The command line of the search that proposed the points; None if no search did."""
        path = self.directory / "search.json"
        if not path.exists():
            return None
        row = read_json(path)
        if not (isinstance(row, dict) and _are_texts(row.get("arguments"))):
            raise DamagedFile(f"{path} is damaged: restore it from a copy.")
        return list(row["arguments"])

    @search.setter
    def search(self, arguments: Sequence[str]) -> None:
        content = list(arguments)
        write_json(self.directory / "search.json", {"arguments": content, "seal": seal_of(content)})

    def is_ours(self, part: Point | Plan) -> bool:
        """Whether a client of this user wrote a point or the plan, and nobody has changed it or the code."""
        return is_ours(self._content(part), part.seal)

    def has_our_search(self) -> bool:
        """The same of the search."""
        return is_ours(self.search, read_json(self.directory / "search.json").get("seal"))

    def _content(self, part: Point | Plan) -> list[Any]:
        """What is sealed."""
        if isinstance(part, Point):
            return [part.point, part.overrides, part.directory]
        return [part.kind, part.settings, part.code, part.hydra_overrides, contents(self.directory / part.code)]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other clients from submitting for the length of the block; waits for one that does."""
        with (self.directory / ".submit.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @property
    def submissions(self) -> dict[int, dict[str, str]]:
        """Number of a point -> its last line of jobs.jsonl."""
        path = self.directory / "jobs.jsonl"
        return {row["point"]: row for row in (_read(dict, row, path, _is_job) for row in read_jsonl(path))}

    @property
    def jobs(self) -> dict[int, str]:
        """Number of a point -> the job that it was given last."""
        return {point: row["job"] for point, row in self.submissions.items()}

    def note_jobs(self, jobs: Mapping[int, str], queue: str) -> None:
        """Record which job each point was given, and in which kind of queue it is."""
        rows = ({"point": point, "job": job, "queue": queue, "submitted": now()} for point, job in jobs.items())
        append_text(self.directory / "jobs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def standings(
        self,
        states: Mapping[str, str] | None,
        points: Sequence[Point] | None = None,
        jobs: Mapping[int, str] | None = None,
    ) -> list[Standing]:
        """How the points stand.

        Args:
            states: job -> its state in the queue, as RUNNING or `PENDING Priority`, of all jobs that have not ended;
                None if the queue cannot be asked, and then a run's last sign of life decides.
            points: of these points only.
            jobs: those that the queue was asked for; another client may have submitted others since.
        """
        jobs = self.jobs if jobs is None else jobs
        return [
            self._standing(point, jobs.get(point.point), states)
            for point in (self.points if points is None else points)
        ]

    def _standing(self, point: Point, job: str | None, states: Mapping[str, str] | None) -> Standing:
        directory = self.run_directory(point)
        try:
            record = read_record(directory)
        except OSError:
            record = None
        except DamagedFile:
            return Standing(point, "broken", job)
        written = record["status"] if record else None
        told = states.get(job) if states is not None and job is not None else None
        state, _, reason = (told or "").partition(" ")
        if written in ("done", "failed") and not state:
            status = written
        elif state:
            status = "done" if written == "done" else "running" if state in ("RUNNING", "COMPLETING") else "pending"
        elif record is not None and written == "running":
            alive = states is None or job is None
            status = "running" if alive and _age_s(record["heartbeat"]) < LOST_AFTER_S else "lost"
        elif written is not None:
            status = written
        elif job is None:
            status = "missing"
        else:
            status = "pending" if states is None else "lost"
        if status == "lost" and is_locked(directory / ".lock"):  # somebody continues it with run=
            status = "running"
        silent = _age_s(record["heartbeat"]) if record and status == written == "running" else 0.0
        progress: _Progress = (None, None, None, None)
        with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):  # of files that are not ours
            progress = _progress(directory, record or {})
        waits_for = reason if status == "pending" and reason else None
        return Standing(point, status, job, record, *progress, waits_for, silent if silent > LOST_AFTER_S else None)

    def logs(self, job: str) -> list[Path]:
        """What a job's processes printed: one file a rank for each of stdout and stderr."""
        return sorted((self.directory / ".submitit" / job).glob("*_log.*"))

    def last_words(self, standing: Standing) -> tuple[str, Path | None]:
        """Why a point ended, as far as its record and its logs tell, and the log to read on in."""
        record, job = standing.record or {}, standing.job
        logs = self.logs(job) if job else []
        errors = [path for path in logs if path.suffix == ".err" and path.stat().st_size]
        log = self.run_directory(standing.point) / "train.log"
        if standing.status == "broken":
            return f"{log.with_name('run.json')} is damaged: restore it, or remove the folder and resume.", None
        if standing.status == "failed" and record.get("error") and self._has_opened(standing):
            return str(record["error"]), log if log.exists() else next(iter(errors), None)
        folder = self.directory / ".submitit" / str(job)
        if (folder / ENDING).exists():
            return (folder / ENDING).read_text(encoding="utf-8"), log if log.exists() else None
        if job and not logs and not record and self.plan.kind == "slurm":
            return f"The job has written nothing, not even to {folder}: do all nodes see this folder?", None
        text = errors[0].read_text(encoding="utf-8", errors="replace") if errors else ""
        lines = [line.rpartition("\r")[2].strip() for line in text.splitlines() if line.strip()]
        return "\n".join(lines[-_LOG_LINES:]), next(iter(errors), log if log.exists() else None)

    def _has_opened(self, standing: Standing) -> bool:
        """Whether its record is of its newest job; one that was refused leaves that of the job before."""
        submission = self.submissions.get(standing.point.point)
        attempts = (standing.record or {}).get("attempts")
        return not submission or not attempts or attempts[-1].get("ended", now()) >= submission["submitted"]


def _read(kind: Callable[..., _Row], row: Any, path: Path, fits: Callable[[_Row], bool]) -> _Row:
    """A row of a sweep's file as what it is; raises DamagedFile."""
    with contextlib.suppress(TypeError, ValueError, AttributeError, KeyError):
        if fits(found := kind(**row)):
            return found
    raise DamagedFile(f"{path} is damaged ({row!r:.200}): restore it from a copy.")


def _is_point(point: Point) -> bool:
    is_inside = re.fullmatch(r"\w[\w.-]*", point.directory) is not None
    return type(point.point) is int and _are_texts(point.overrides) and is_inside


def _is_plan(plan: Plan) -> bool:
    is_inside = not Path(plan.code).is_absolute() and ".." not in Path(plan.code).parts
    is_known = plan.kind in _SETTINGS
    return is_known and isinstance(plan.settings, dict) and is_inside and _are_texts(plan.hydra_overrides)


def _is_job(row: dict[str, Any]) -> bool:
    return type(row["point"]) is int and re.fullmatch(r"\w+", row["job"]) is not None


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _age_s(text: str) -> float:
    return (datetime.now(UTC) - datetime.fromisoformat(text)).total_seconds()


def _progress(directory: Path, record: Mapping[str, Any]) -> _Progress:
    """(step, of how many, last loss, seconds remaining) of a training."""
    begun = record.get("progress")
    rows = [row for row in read_jsonl(directory / "metrics.jsonl") if row.get("loss") is not None]
    if begun is None or not rows:
        return None, begun["of"] if begun else None, None, None
    step, total = rows[-1]["step"], begun["of"]
    written = (directory / "metrics.jsonl").stat().st_mtime
    seconds = written - datetime.fromisoformat(begun["since"]).timestamp()
    remaining = None
    if step > begun["step"] and step < total:
        remaining = max(0.0, seconds / (step - begun["step"]) * (total - step) - (time.time() - written))
    return step, total, float(rows[-1]["loss"]), remaining  # "nan" is text there
