"""A client that goes away, on purpose or not, and one that comes back."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import LAUNCHER, Submit, records
from vlmexp.files import read_jsonl
from vlmexp.launch.sweep import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

PROBE = """
import time
from pathlib import Path

def stage(config, run):
    until = time.monotonic() + 300  # nothing outlives a failing test for long
    while not Path("go").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return {"metric": 10 * config.peft["r"]}
"""
# In the place of sbatch: it says that it was called, and calls the real one when it is told to.
SLOW_SBATCH = """#!/bin/sh
touch submitting
until [ -e submit ]; do sleep 0.05; done
exec {sbatch} "$@"
"""


def press_ctrl_c(client: subprocess.Popen[str]) -> None:
    os.killpg(client.pid, signal.SIGINT)  # a terminal sends it to the client and to all that it runs


def slow_sbatch(folder: Path) -> str:
    """PATH for a client that is held up in the middle of submitting."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "sbatch").write_text(SLOW_SBATCH.format(sbatch=shutil.which("sbatch")))
    (programs / "sbatch").chmod(0o755)
    return f"{programs}{os.pathsep}{os.environ['PATH']}"


def in_queue(slurm: Cluster) -> int:
    return slurm.run("squeue", "-h", "-r", "-o", "%i").count("\n")


@pytest.mark.parametrize("cancel", [False, True])
def test_ctrl_c(submit: Submit, slurm: Cluster, tmp_path: Path, cancel: bool):
    """While sbatch is at work; all points are submitted then, and all go on or none. Another client picks them up."""
    sweep = tmp_path / "sweep"
    (tmp_path / "probe.py").write_text(PROBE)
    client = submit(
        "-m", "stage=probe.stage", "peft.r=2,3,4,5", *LAUNCHER, f"hydra.launcher.cancel_on_interrupt={cancel}",
        PATH=slow_sbatch(tmp_path),
    )  # fmt: skip
    wait_until(lambda: (tmp_path / "submitting").exists(), "the points are being submitted")
    press_ctrl_c(client)
    (tmp_path / "submit").touch()
    said, errors = client.communicate(timeout=120)
    assert client.returncode == 130, errors
    assert "Traceback" not in errors
    assert [row["point"] for row in read_jsonl(sweep / "jobs.jsonl")] == [0, 1, 2, 3]
    assert f"stage=resume sweep={sweep}" in said
    if cancel:
        assert "The jobs are cancelled" in said
        wait_until(lambda: not in_queue(slurm), "the queue is empty")
    else:
        assert "The jobs go on." in said
        assert f"scancel {Sweep(sweep).jobs[0].partition('_')[0]}" in said
        assert in_queue(slurm) == 4

    again = submit("stage=resume", f"sweep={sweep}")
    to_run = "4 of 4 points to run" if cancel else "0 of 4 points to run ("
    assert again.stdout is not None
    assert to_run in again.stdout.readline()
    (tmp_path / "go").touch()
    said, errors = again.communicate(timeout=120)
    assert again.returncode == 0, errors
    assert {number: record["result"] for number, record in records(sweep).items()} == {
        0: {"metric": 20}, 1: {"metric": 30}, 2: {"metric": 40}, 3: {"metric": 50},
    }  # fmt: skip
    assert "point   3  done  metric=50" in said
    assert len(read_jsonl(sweep / "jobs.jsonl")) == (8 if cancel else 4)


def test_two_clients_submit_a_point_once(submit: Submit, slurm: Cluster, tmp_path: Path):
    """The second comes while sbatch is at work for the first. None of them starts points with another launcher."""
    sweep = tmp_path / "sweep"
    (tmp_path / "probe.py").write_text(PROBE)
    first = submit("-m", "stage=probe.stage", "peft.r=2,3", *LAUNCHER, PATH=slow_sbatch(tmp_path))
    wait_until(lambda: (tmp_path / "submitting").exists(), "the points are being submitted")
    second = submit("stage=resume", f"sweep={sweep}")
    assert second.stdout is not None
    assert "2 of 2 points to run" in second.stdout.readline()
    (tmp_path / "submit").touch()
    wait_until(lambda: len(records(sweep)) == 2, "both points run")
    other = submit("-m", "stage=probe.stage", "peft.r=2,3", "hydra.sweep.dir=sweep")
    errors = other.communicate(timeout=120)[1]
    assert other.returncode == 2
    assert "has 2 points under way with another launcher" in errors
    assert f"scancel {Sweep(sweep).jobs[0].partition('_')[0]}" in errors
    (tmp_path / "go").touch()
    for client in (first, second):
        said, errors = client.communicate(timeout=120)
        assert client.returncode == 0, errors
        assert "point   1  done  metric=30" in said
    assert [row["point"] for row in read_jsonl(sweep / "jobs.jsonl")] == [0, 1]


def test_resume_runs_the_old_code_or_the_new(submit: Submit, slurm: Cluster, tmp_path: Path, checkout: Path):
    """What is edited changes no point that is resumed, unless resume.code=current."""
    sweep, stage = tmp_path / "sweep", checkout / "vlmexp" / "pipeline.py"

    def writes(version: str) -> None:
        stage.write_text(
            "from pathlib import Path\n"
            "def check_options(config): pass\n"
            "def pipeline(config, run):\n"
            f"    if not Path('mended').exists(): raise RuntimeError('out of luck, {version}')\n"
            f"    return {{'metric': {version}}}\n"
        )

    writes("1")
    client = submit("-m", "peft.r=2,4", *LAUNCHER, code=checkout)
    errors = client.communicate(timeout=120)[1]
    assert client.returncode == 1
    assert errors.count("RuntimeError: out of luck, 1") == 2
    (tmp_path / "mended").touch()
    writes("2")
    (sweep / "1").rename(tmp_path / "away")  # this point alone is to run in the first resume
    for code, point in (("same", 1), ("current", 0)):
        failed = "false" if code == "same" else "true"
        again = submit(
            "stage=resume", f"sweep={sweep}", f"resume.code={code}", f"resume.failed={failed}", code=checkout
        )
        said, errors = again.communicate(timeout=120)
        assert again.returncode == 0, errors
        assert "1 of 2 points to run" in said
        assert records(sweep)[point]["status"] == "done"
    assert [record["result"]["metric"] for _, record in sorted(records(sweep).items())] == [2, 1]
