"""A sweep as it is typed without a launcher: one process after the other on the terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import Disk, cli_environment
from vlmexp.files import read_json, read_jsonl
from vlmexp.interruption import interrupt, uninterrupted
from vlmexp.launch.client import run_points
from vlmexp.launch.queues import ForegroundQueue
from vlmexp.launch.sweep import Plan, Sweep
from vlmexp.provenance import git_state

pytestmark = pytest.mark.slow

PROBE = """
import os, signal, time
from pathlib import Path

def stage(config, run):
    print(f"process {os.getpid()} at work")
    if config.peft["r"] == 3:
        raise RuntimeError("out of luck")
    if config.peft["r"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
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


def test_a_point_that_fails_and_one_that_is_killed_do_not_end_it(cli, mine, tmp_path):
    sweep, checkout = tmp_path / "sweep", git_state()
    done = cli("-m", "stage=probe.stage", "peft.r=2,3,5,4", "hydra.sweep.dir=sweep", **mine)
    assert done.returncode == 1
    assert "2 of 4 points did not reach their end" in done.stderr
    assert "Error executing job" not in done.stderr
    assert "point 1 failed: peft.r=3\n    RuntimeError: out of luck\n" in done.stderr
    assert "point 2 lost: peft.r=5\n    killed by signal 9 (Killed)\n" in done.stderr
    assert [row["overrides"][1] for row in read_jsonl(sweep / "points.jsonl")] == [
        "peft.r=2", "peft.r=3", "peft.r=5", "peft.r=4",
    ]  # fmt: skip
    processes = [line for line in done.stdout.splitlines() if line.startswith("process ")]
    assert len(set(processes)) == 4, "every point has a process of its own, and what it prints is seen"
    for point in "0123":  # each runs a copy of the code, which knows the checkout that it was made from
        record = read_json(sweep / point / "run.json")
        assert record["git"] == (checkout and {"sha": checkout["sha"], "dirty": bool(checkout["diff"])})
        assert (sweep / point / "git.diff").exists() == bool(checkout and checkout["diff"])
    assert "2 done, 1 failed, 1 lost" in cli("stage=status", f"sweep={sweep}", **mine).stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_client_that_is_told_to_stop_stops_its_point(number, cli, mine, tmp_path, data_dir):
    sweep = tmp_path / "sweep"
    client = subprocess.Popen(
        [sys.executable, "-m", "vlmexp", "-m", "stage=probe.stage", "peft.r=2,4", "seed=1", "hydra.sweep.dir=sweep"],
        cwd=tmp_path, env=cli_environment(data_dir) | mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (sweep / "0" / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(client.pid, number)  # as a terminal does
    else:
        client.send_signal(number)
    said, errors = client.communicate(timeout=60)
    assert client.returncode == 130, errors
    assert f"stage=resume sweep={sweep}" in said
    assert read_json(sweep / "0" / "run.json")["status"] == "preempted"
    assert not os.path.exists(f"/proc/{Sweep(sweep).jobs[0]}")
    (tmp_path / "go").touch()
    done = cli("stage=resume", f"sweep={sweep}", **mine)
    assert done.returncode == 0, done.stderr
    assert "2 of 2 points to run" in done.stdout


def test_two_clients_share_the_points(cli, mine, tmp_path, data_dir):
    """Each point runs once, one after the other, and both clients see the end."""
    sweep = tmp_path / "sweep"

    def client(*arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "vlmexp", *arguments],
            cwd=tmp_path, env=cli_environment(data_dir) | mine, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )  # fmt: skip

    first = client("-m", "stage=probe.stage", "peft.r=2,4,8", "seed=1", "hydra.sweep.dir=sweep")
    deadline = time.monotonic() + 60
    while not (sweep / "0" / "run.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    second = client("stage=resume", f"sweep={sweep}")
    assert second.stdout is not None
    assert "2 of 3 points to run (1 running)" in second.stdout.readline()
    assert "point   0  running" in second.stdout.readline()
    assert len(read_jsonl(sweep / "jobs.jsonl")) == 1
    (tmp_path / "go").touch()
    for said, errors in (process.communicate(timeout=60) for process in (first, second)):
        assert "point   2  done  metric=80" in said, errors
    assert (first.returncode, second.returncode) == (0, 0)
    assert [row["point"] for row in read_jsonl(sweep / "jobs.jsonl")] == [0, 1, 2]
    attempts = [read_json(sweep / str(number) / "run.json")["attempts"] for number in range(3)]
    assert [len(of_point) for of_point in attempts] == [1, 1, 1]
    assert attempts[1][0]["ended"] < attempts[2][0]["started"]


def test_jobs_that_cannot_be_recorded_do_not_stay(disk: Disk, mine, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", mine["PYTHONPATH"])
    sweep = Sweep(tmp_path / "sweep")
    sweep.add([["stage=probe.stage", "seed=1"]])
    disk.mount("64k")
    (disk.folder / "jobs.jsonl").touch()
    disk.fill()
    (sweep.directory / "jobs.jsonl").symlink_to(disk.folder / "jobs.jsonl")
    wanted = sweep.standings({})
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(OSError, match="No space left on device"):
            run_points(sweep, wanted, Plan("foreground", {"wait": True, "cancel_on_interrupt": True}, "code", []))
    finally:
        signal.signal(signal.SIGTERM, before)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    assert not [pid for pid in children if str(tmp_path).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_a_zombie_is_no_job(tmp_path):
    """In a container whose first process is no init, the point of a client that was killed becomes one."""
    leave = "import os; pid = os.fork(); pid or os._exit(0); os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)"
    script = [sys.executable, "-c", f"{leave}; print(pid, flush=True); input()"]
    with subprocess.Popen(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        job = parent.stdout.readline().strip()
        assert "State:\tZ" in Path(f"/proc/{job}/status").read_text()
        assert ForegroundQueue({}, tmp_path / ".submitit").states([job]) == {}
        parent.communicate("\n")


class Stubborn:
    """A point that takes for ever to save."""

    def command(self) -> list[str]:
        script = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)"
        return [sys.executable, "-c", f"{script}; time.sleep(120)"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_who_does_not_want_to_wait_for_a_checkpoint_asks_again(number, tmp_path, capfd):
    queue = ForegroundQueue({}, tmp_path / ".submitit")
    before = signal.signal(signal.SIGTERM, interrupt)
    deadline, held_off = time.monotonic() + 60, threading.Event()

    def impatient() -> None:  # a thread that, as NumPy's, blocks no signal
        held_off.wait()
        while not callable(signal.getsignal(signal.SIGINT)) and time.monotonic() < deadline:  # it is ignored till then
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    try:
        (job,) = queue.submit([Stubborn()], tmp_path)
        while "up" not in capfd.readouterr().out and time.monotonic() < deadline:
            time.sleep(0.01)
        threading.Thread(target=impatient, daemon=True).start()
        with uninterrupted():
            held_off.set()
            assert queue.cancel([job]) is None
    finally:
        signal.signal(signal.SIGTERM, before)
    assert queue._processes[job].returncode == -signal.SIGKILL


def test_every_point_is_checked_before_the_first_starts(cli, mine, tmp_path):
    done = cli("-m", "stage=probe.stage", "train.logging_steps=1,1.5", "hydra.sweep.dir=sweep", **mine)
    assert done.returncode == 2
    assert "point 1 (" in done.stderr
    assert "train.logging_steps=1.5 must be a whole number" in done.stderr
    assert not (tmp_path / "sweep" / "points.jsonl").exists()


def test_a_run_is_not_continued_by_a_point(cli, mine, tmp_path):
    done = cli("-m", "run=one,two", "hydra.sweep.dir=sweep", **mine)
    assert done.returncode == 2
    assert "point 0 (run=one): stage=pipeline continues run=one in its own directory" in done.stderr
    assert not (tmp_path / "sweep" / "points.jsonl").exists()


def test_the_directory_of_a_point_is_its_number(cli, mine, tmp_path):
    done = cli("-m", "peft.r=2,4", "hydra.sweep.subdir=r${peft.r}", "hydra.sweep.dir=sweep", **mine)
    assert done.returncode == 2
    assert "hydra.sweep.subdir=r${peft.r}: the directory of a point is its number" in done.stderr
    assert not (tmp_path / "sweep" / "points.jsonl").exists()


def test_presets(cli, mine, tmp_path):
    """A preset that is a sweep, with and without the plus; several presets; a sweep in a sweep is refused."""
    done = cli(
        "-m", "+experiment=sweep_lora", "stage=probe.stage", "peft.r=2", "train.learning_rate=1e-3", "seed=0,2",
        "hydra.sweep.dir=one", **mine,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    points = [row["overrides"] for row in read_jsonl(tmp_path / "one" / "points.jsonl")]
    assert [point[-1] for point in points] == ["seed=0", "seed=2"]
    assert [read_json(tmp_path / "one" / str(n) / "run.json")["result"]["metric"] for n in range(2)] == [20, 20]
    done = cli("-m", "+experiment=sweep_lora,pretrain_tiny", "hydra.sweep.dir=two", **mine)
    assert done.returncode == 2
    assert "point 0 (experiment=sweep_lora) is a sweep itself" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "launcher"),
    [([], "ForegroundLauncher"), (["experiment=mine"], "LocalLauncher"), (["hydra/launcher=slurm"], "SlurmLauncher")],
)
def test_a_preset_may_choose_the_launcher(arguments, launcher, cli, tmp_path):
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    preset = "# @package _global_\ndefaults:\n  - override /hydra/launcher: slurm_local\n"
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(preset)
    done = cli(f"hydra.searchpath=[file://{tmp_path / 'conf'}]", *arguments, "--cfg", "hydra")
    assert f"_target_: hydra_plugins.vlmexp_launcher.{launcher}\n" in done.stdout
