"""What SLURM says of jobs. Accounting is not needed."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

from vlmexp import programs

_COLUMNS = {"JobID": 20, "State": 20, "PreemptTime": 40, "TimeLimit": 20, "Reason": 60}  # letters
_RUNS = ("RUNNING", "SIGNALING", "RESIZING")  # what a job that nobody has ended yet is called
_ANSWERS_WITHIN_S = 30


class NoAnswer(Exception):
    """SLURM says nothing of the job: its controller is busy or away."""


@dataclass(frozen=True)
class Job:
    """How a job stands.

    Attributes:
        runs: whether SLURM has neither ended nor requeued it.
        is_preempted: whether it makes way for another; SLURM forgets that when the job starts again.
        is_out_of_time: whether it was ended at its time limit; it has a moment left, as long as SLURM's KillWait.
        time_limit: as SLURM writes it, such as 1-00:00:00.
    """

    runs: bool
    is_preempted: bool
    is_out_of_time: bool
    time_limit: str


def squeue(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Call squeue with these options alone: the user's own, in variables of the environment, would hide jobs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SQUEUE_")}
    return subprocess.run(
        [programs.program("squeue"), *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=_ANSWERS_WITHIN_S,
    )


def this_job() -> Job:
    """How the job stands that this process belongs to.

    The last task of an array bears the array's own number, by which SLURM names all of its tasks, and the parts of a
    heterogeneous job answer to the first one's: a row counts if its own number is ours. A job that an array's task
    submits inherits the variables SLURM_ARRAY_*, so these name it not.

    Raises:
        NoAnswer, OSError, subprocess.SubprocessError: SLURM cannot be asked now.
    """
    number = os.environ["SLURM_JOB_ID"]
    widths = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
    asked = squeue("--noheader", "--array", "--states=all", f"--jobs={number}", f"--Format={widths}")
    rows = [_cells(line) for line in asked.stdout.splitlines()]
    own = [row for row in rows if row["JobID"] == number]
    if len(own) != 1:
        raise NoAnswer(" ".join(asked.stderr.split()) or f"squeue has {len(own)} rows of job {number}")
    (row,) = own
    return Job(
        runs=row["State"] in _RUNS,
        is_preempted=row["PreemptTime"] not in ("", "N/A", "None"),
        is_out_of_time=row["State"] not in _RUNS and row["Reason"] == "TimeLimit",
        time_limit=row["TimeLimit"],
    )


def requeue_this_job() -> None:
    """Put the job back into its queue, which ends its processes.

    Raises:
        OSError, subprocess.SubprocessError: SLURM cannot be asked now, or refuses.
    """
    name = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ:  # by its number, that of the last task would requeue all
        name = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    subprocess.run([programs.program("scontrol"), "requeue", name], check=True, timeout=_ANSWERS_WITHIN_S)


def _cells(line: str) -> dict[str, str]:
    """A row's values by their widths: some hold spaces."""
    cells, start = {}, 0
    for name, width in _COLUMNS.items():
        cells[name] = line[start : start + width].strip()
        start += width
    return cells
