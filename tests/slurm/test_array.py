"""An array whose points end in all the ways there are, beside each other: a task is never judged by its siblings.

A longer one by hand, such as

    export VLMEXP_ARRAY=$(printf 'limit,%.0s' {1..16})quick,fails,cancelled,limit
    python -m pytest -n 0 tests/slurm/test_array.py

`late` is a point that has not saved when its limit is there, which takes two minutes.
"""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import LAUNCHER, Submit, records
from tests.slurm.stopped import at_limit, is_to_be_stopped
from vlmexp.launch.sweep import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

# The last task bears the number of the array, by which SLURM names all of them; it runs when others have ended.
KINDS = os.environ.get("VLMEXP_ARRAY", "signal,preempted,quick,fails,cancelled,stuck,limit").split(",")
STATUS = {"fails": "failed", "stuck": "failed", "cancelled": "preempted"}  # of the other kinds: done
ENDS = {"done": "COMPLETED", "failed": "FAILED", "preempted": "CANCELLED"}


def stop(slurm: Cluster, kind: str, job: str) -> None:
    """Do to a running job what its kind is about."""
    if kind in ("limit", "late"):  # SLURM looks at limits twice a minute
        slurm.run("scontrol", "update", f"JobId={job}", "TimeLimit=1")
    elif kind in ("signal", "stuck"):
        # While siblings are pending, scancel signals it again and again for more than a minute.
        subprocess.Popen(["timeout", "4", "scancel", "--signal=USR2", job], env=os.environ | slurm.environment)
    elif kind == "cancelled":
        slurm.run("scancel", job)
    elif kind == "preempted" and (node := slurm.run("squeue", "-h", "-j", job, "-o", "%N").strip()):
        slurm.run("sbatch", "-p", "high", "-N1", "-w", node, "-n2", "-o", "/dev/null", "--wrap", "true")


def test_each_task_goes_its_own_way(submit: Submit, slurm: Cluster, tmp_path: Path):
    sweep, kinds = tmp_path / "sweep", dict(enumerate(KINDS))
    names = ",".join(f"{kind}-{number}" for number, kind in kinds.items())
    client = submit(
        "-m", "stage=tests.slurm.stopped.stage", f"tracking.name={names}", *LAUNCHER,
        "hydra.launcher.signal_delay_s=40",
    )  # fmt: skip
    wait_until(lambda: len(Sweep(sweep).jobs) == len(kinds) or client.poll(), "the points are submitted")
    jobs, stopped = Sweep(sweep).jobs, set()
    while client.poll() is None:
        for point, run in records(sweep).items():
            attempt = point, len(run["attempts"])
            if run["status"] == "running" and attempt not in stopped and is_to_be_stopped(kinds[point], run):
                stopped.add(attempt)
                stop(slurm, kinds[point], jobs[point])
        time.sleep(0.5)
    _, errors = client.communicate()
    runs = records(sweep)
    wanted = {point: STATUS.get(kind, "done") for point, kind in kinds.items()}
    assert {point: run["status"] for point, run in runs.items()} == wanted, errors
    assert {point: slurm.end(jobs[point]) for point in kinds} == {p: ENDS[status] for p, status in wanted.items()}
    assert client.returncode == any(status != "done" for status in wanted.values()), errors
    for point, kind in kinds.items():
        restarts = slurm.run("squeue", "-h", "-t", "all", "-j", jobs[point], "-O", "RestartCnt")
        assert int(restarts) == len(at_limit(runs[point]))
        assert not is_to_be_stopped(kind, runs[point]) or kind in STATUS
        if kind == "stuck":
            assert [attempt["status"] for attempt in runs[point]["attempts"]] == ["preempted", "failed"]
            assert "Standstill: The job was stopped 2 times in a row, by its time limit of 1-00:00:00," in errors
            assert "hydra.launcher.timeout_min=MINUTES" in errors
