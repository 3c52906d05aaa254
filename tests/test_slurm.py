"""What SLURM says of this job, and of no other. The rows are those of a real squeue."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vlmexp.launch.queues import SlurmQueue
from vlmexp.slurm import Job, NoAnswer, this_job

WIDTHS = (20, 20, 40, 20, 60)
# An array of which the last task, that bears the array's number, runs, and a task that has not started.
ARRAY = [
    ("2", "COMPLETED", "N/A", "1-00:00:00", "None"),
    ("1", "RUNNING", "N/A", "1-00:00:00", "None"),
    ("3", "FAILED", "2026-11-27T16:35:37", "1-00:00:00", "NonZeroExitCode"),
    ("12", "PENDING", "N/A", "1-00:00:00", "launch failed requeued held"),
]


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A squeue that prints rows, and hides them all from somebody who set what the user may set."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    program = tmp_path / "squeue"

    def prints(text: str, code: int = 0) -> None:
        (tmp_path / "rows").write_text(text)
        program.write_text(f'#!/bin/sh\n[ "$SQUEUE_STATES" ] || cat {tmp_path}/rows\nexit {code}\n')
        program.chmod(0o755)

    return prints


def rows(*jobs: tuple[str, ...]) -> str:
    return "".join("".join(f"{value:{width}}" for value, width in zip(job, WIDTHS, strict=True)) + "\n" for job in jobs)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize(
    ("number", "job"),
    [
        ("1", Job(runs=True, is_preempted=False, is_out_of_time=False, time_limit="1-00:00:00")),
        ("2", Job(runs=False, is_preempted=False, is_out_of_time=False, time_limit="1-00:00:00")),
        ("3", Job(runs=False, is_preempted=True, is_out_of_time=False, time_limit="1-00:00:00")),
    ],
)
def test_a_task_is_not_taken_for_its_sibling(squeue, monkeypatch, order, number, job):
    squeue(rows(*ARRAY[::order]))
    monkeypatch.setenv("SLURM_JOB_ID", number)
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "77")  # of a task that has submitted this job
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "0")
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    assert this_job() == job


@pytest.mark.parametrize(
    ("state", "preempted", "reason", "runs", "is_preempted", "is_out_of_time"),
    [
        ("RUNNING", "2026-11-27T16:35:37", "None", True, True, False),
        ("SIGNALING", "N/A", "None", True, False, False),
        ("COMPLETING", "N/A", "None", False, False, False),  # cancelled
        ("COMPLETING", "N/A", "TimeLimit", False, False, True),
        ("COMPLETING", "2026-11-27T16:35:37", "None", False, True, False),  # requeued
        ("PENDING", "N/A", "BeginTime", False, False, False),
    ],
)
def test_how_a_job_stands(squeue, monkeypatch, state, preempted, reason, runs, is_preempted, is_out_of_time):
    squeue(rows(("7", state, preempted, "1:00", reason)))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert this_job() == Job(runs, is_preempted, is_out_of_time, "1:00")


@pytest.mark.parametrize(("text", "code"), [("", 0), ("", 1), (rows(*ARRAY), 0)])
def test_no_row_is_no_answer(squeue, monkeypatch, text, code):
    squeue(text, code)
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    with pytest.raises(NoAnswer, match="squeue has 0 rows of job 9"):
        this_job()


def test_a_user_s_filter_hides_no_job(squeue, monkeypatch, tmp_path):
    squeue("17_0|RUNNING None\n17_1|PENDING Priority\n17_2|PENDING launch failed requeued held\n18|RUNNING None\n")
    monkeypatch.setenv("SQUEUE_STATES", "COMPLETED")
    queue = SlurmQueue({}, tmp_path)
    assert queue.states(["17_0", "17_1", "17_2", "17_3"]) == {
        "17_0": "RUNNING", "17_1": "PENDING Priority", "17_2": "PENDING launch failed requeued held",
    }  # fmt: skip
