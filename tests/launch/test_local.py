"""Sweeps as processes of this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import cli_environment
from vlmexp.files import read_json, read_jsonl

pytestmark = pytest.mark.slow

LOCAL = ["hydra/launcher=slurm_local", "hydra.sweep.dir=sweep"]
PROBE = """
import time
from pathlib import Path

def stage(config, run):
    if config.peft["r"] == 3:
        raise RuntimeError("out of luck")
    until = time.monotonic() + 120  # nothing outlives a failing test for long
    while config.seed == 1 and not Path("go").exists() and time.monotonic() < until:
        time.sleep(0.05)
    return {"metric": config.peft["r"] * 10}
"""


@pytest.fixture
def mine(tmp_path) -> dict[str, str]:
    """An environment with a stage of the user's own."""
    (tmp_path / "probe.py").write_text(PROBE)
    return {"PYTHONPATH": os.pathsep.join([cli_environment(tmp_path)["PYTHONPATH"], str(tmp_path)])}


def test_a_sweep_of_which_one_point_fails(cli, mine, tmp_path):
    sweep = tmp_path / "sweep"
    done = cli("-m", "stage=probe.stage", "peft.r=2,3,4", *LOCAL, "hydra.launcher.array_parallelism=3", **mine)
    assert done.returncode == 1
    assert "1 of 3 points did not reach their end" in done.stderr
    assert "point 1 failed: peft.r=3" in done.stderr
    assert "RuntimeError: out of luck" in done.stderr
    assert f"log: {sweep / '1' / 'train.log'}" in done.stderr
    assert "Traceback" not in done.stderr
    assert [read_json(sweep / str(n) / "run.json")["status"] for n in range(3)] == ["done", "failed", "done"]

    # The same folder again: what is there keeps its number, and what is done is not repeated.
    done = cli("-m", "stage=probe.stage", "peft.r=5,4", *LOCAL, **mine)
    assert done.returncode == 0, done.stderr
    assert "1 of 2 points to run" in done.stdout
    assert [row["overrides"][1] for row in read_jsonl(sweep / "points.jsonl")] == [
        "peft.r=2", "peft.r=3", "peft.r=4", "peft.r=5",
    ]  # fmt: skip
    assert read_json(sweep / "3" / "run.json")["result"]["metric"] == 50
    assert len(read_json(sweep / "2" / "run.json")["attempts"]) == 1
    table = cli("stage=status", f"sweep={sweep}", **mine).stdout
    assert "3 done, 1 failed" in table
    assert not (tmp_path / "outputs").exists()


def test_every_point_is_checked_before_the_first_starts(cli, mine, tmp_path):
    done = cli("-m", "stage=probe.stage", "train.logging_steps=1,1.5", *LOCAL, **mine)
    assert done.returncode == 2
    assert "point 1 (" in done.stderr
    assert "train.logging_steps=1.5 must be a whole number" in done.stderr
    assert not (tmp_path / "sweep").exists()


def test_ctrl_c_leaves_the_jobs_alone(cli, mine, tmp_path, data_dir):
    sweep = tmp_path / "sweep"
    client = subprocess.Popen(
        [sys.executable, "-m", "vlmexp", "-m", "stage=probe.stage", "peft.r=2,4", "seed=1", *LOCAL],
        cwd=tmp_path, env=cli_environment(data_dir) | mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (sweep / "0" / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(client.pid, signal.SIGINT)  # as a terminal does
    said, errors = client.communicate(timeout=60)
    assert client.returncode == 130, errors
    assert "The jobs go on" in said
    assert f"stage=resume sweep={sweep}" in said
    assert "1 running, 1 missing" in cli("stage=status", f"sweep={sweep}", **mine).stdout

    # What it says cancels, and what was cancelled can be resumed.
    command = next(line.partition("cancel")[2].split() for line in said.splitlines() if "cancel" in line)
    subprocess.run(command, check=True)
    while Path("/proc", command[-1]).exists():
        assert time.monotonic() < deadline + 60
        time.sleep(0.1)
    (tmp_path / "go").touch()
    done = cli("stage=resume", f"sweep={sweep}", "hydra.launcher.array_parallelism=2", **mine)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 points to run" in done.stdout
    assert [attempt["status"] for attempt in read_json(sweep / "0" / "run.json")["attempts"]] == ["preempted", "done"]


def test_points_under_way_keep_their_launcher(cli, mine, tmp_path):
    points = ["-m", "stage=probe.stage", "peft.r=2", "seed=1", "hydra.sweep.dir=sweep"]
    done = cli(*points, "hydra/launcher=slurm_local", "hydra.launcher.wait=false", **mine)
    assert done.returncode == 0, done.stderr
    done = cli(*points, **mine)
    assert done.returncode == 2
    assert f"{tmp_path / 'sweep'} has 1 points under way with another launcher" in done.stderr
    (tmp_path / "go").touch()
    done = cli("stage=resume", "sweep=sweep", **mine)
    assert done.returncode == 0, done.stderr
    done = cli(*points, "peft.r=4", **mine)
    assert done.returncode == 0, done.stderr
    rows = read_jsonl(tmp_path / "sweep" / "jobs.jsonl")
    assert [(row["point"], row["queue"]) for row in rows] == [(0, "local"), (1, "foreground")]


def test_a_mistyped_command(cli, tmp_path):
    assert "sweep= is not set" in cli("stage=status").stderr
    assert (
        "'resume.faild' does not exist; did you mean 'resume.failed'?"
        in cli("stage=resume", "sweep=x", "resume.faild=true").stderr
    )
    assert "sweep=nowhere is no sweep directory" in cli("stage=resume", "sweep=nowhere").stderr
