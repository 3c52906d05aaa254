"""Signals: at once where a stage can be repeated, behind a checkpoint in training."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from submitit.core.utils import UncompletedJobError

from tests.conftest import ROOT, cli_environment, only_run
from vlmexp import interruption, slurm
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl
from vlmexp.interruption import Interruption, Preempted, back_to_the_queue, hold_back, interrupt, uninterrupted
from vlmexp.runs import Run
from vlmexp.slurm import Job

TRAINING = [
    "stage=train", "threads=1", "train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1",
    "train.max_steps=30", "train.logging_steps=1", "train.eval_strategy=no", "train.save_steps=50",
    "peft.lora_dropout=0.1", "dataset.max_examples={train: 300, validation: 8, test: 8}",
]  # fmt: skip


def test_a_signal_raises_at_once_or_at_the_end_of_a_deferred_block():
    seen = []

    def deferred(interruption: Interruption) -> None:
        with interruption.deferred():
            os.kill(os.getpid(), signal.SIGUSR2)
            seen.append("the block ends")

    before = signal.getsignal(signal.SIGTERM)
    with Interruption.listening() as interruption, pytest.raises(Preempted, match="SIGUSR2"):
        deferred(interruption)
    assert seen == ["the block ends"]
    with Interruption.listening(), pytest.raises(Preempted) as stopped:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stopped.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("ranks", "heard"), [("1", ["first"]), ("2", ["first", "second"])])
def test_a_second_ctrl_c_does_not_wait(ranks, heard, monkeypatch):
    """But for that of torchrun, which gives its processes another one for each."""
    monkeypatch.setenv("WORLD_SIZE", ranks)
    seen = []

    def deferred(interruption: Interruption) -> None:
        with interruption.deferred():
            for name in ("first", "second"):
                os.kill(os.getpid(), signal.SIGINT)
                seen.append(name)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background of a shell it is ignored
    try:
        with Interruption.listening() as interruption, pytest.raises(Preempted, match="SIGINT"):
            deferred(interruption)
        assert seen == heard
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with Interruption.listening():
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_forked_worker_dies_of_sigterm_and_does_not_mind_the_other_signal():
    with Interruption.listening() as interruption:
        for number, ending in ((signal.SIGUSR2, 7), (signal.SIGTERM, -signal.SIGTERM)):
            child = os.fork()
            if child == 0:
                os.kill(os.getpid(), number)
                os._exit(7)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == ending
        assert interruption.signal is None


def test_ctrl_c_is_held_off_and_not_seen_by_programs():
    """Such as sbatch, which takes back that it is blocked; then it is ignored."""
    unblock = "import os, signal; signal.pthread_sigmask(signal.SIG_UNBLOCK, {2}); os.kill(os.getpid(), 2); print('on')"
    seen = []
    before = signal.getsignal(signal.SIGINT)  # in the background of a shell it is ignored

    def submit() -> None:
        with uninterrupted():
            # To this thread, as to the only one of a client: another of the test's process would drop it.
            signal.pthread_kill(threading.get_ident(), signal.SIGINT)
            seen.append(subprocess.run([sys.executable, "-c", unblock], capture_output=True, text=True).stdout)

    with pytest.raises(KeyboardInterrupt):
        submit()
    assert seen == ["on\n"]
    with uninterrupted():
        pass
    assert signal.getsignal(signal.SIGINT) is before
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


@pytest.mark.parametrize("ctrl_c", [signal.default_int_handler, signal.SIG_IGN], ids=["terminal", "background job"])
def test_a_signal_that_means_ctrl_c_is_held_off_with_it(ctrl_c):
    seen = []

    def submit() -> None:
        with uninterrupted():
            os.kill(os.getpid(), signal.SIGTERM)
            seen.append("recorded")

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, ctrl_c)
    signal.signal(signal.SIGTERM, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            submit()
        assert seen == ["recorded"]
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_the_run_says_preempted_and_no_further_stage_begins(compose, tmp_path):
    def stages() -> None:
        with Run.open(tmp_path, compose(), []) as run:
            run.interruption._deferred = True
            os.kill(os.getpid(), signal.SIGTERM)
            with run.stage("train"):
                pytest.fail("a stage began")

    with pytest.raises(Preempted):
        stages()
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["attempts"][0]["status"], record["stages"]) == ("preempted", "preempted", {})
    assert "error" not in record


@pytest.fixture
def queue(monkeypatch) -> list[object]:
    """What submitit's handler of a job's signal was called with."""
    told: list[object] = []

    def requeue(number: int, frame: object) -> None:
        told.append(number)
        raise SystemExit(255)

    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    monkeypatch.setattr(interruption, "_PATIENCE_S", 0.0)
    monkeypatch.setattr(interruption, "_ASKS_FOR_S", 0.0)
    monkeypatch.setattr(interruption, "_PAUSE_S", 0.0)
    before = signal.signal(signal.SIGUSR2, requeue)
    yield told
    signal.signal(signal.SIGUSR2, before)


RUNS, COMPLETES = Job(True, False, False, "2:00"), Job(False, False, False, "2:00")
MAKES_WAY, OUT_OF_TIME = Job(True, True, False, "2:00"), Job(False, False, True, "2:00")


@pytest.mark.parametrize(
    ("number", "job", "limits", "goes_back"),
    [
        (signal.SIGUSR2, RUNS, ["2:00"], True),
        (signal.SIGUSR2, MAKES_WAY, [], True),
        (signal.SIGUSR2, OUT_OF_TIME, ["2:00"], True),  # it has saved a moment too late
        (signal.SIGUSR2, COMPLETES, [], False),  # it was cancelled, or requeued by somebody else
        (signal.SIGUSR2, None, [], True),  # nobody answers: rather once too often than never again
        (signal.SIGTERM, RUNS, [], False),  # another rank has died
        (signal.SIGTERM, MAKES_WAY, [], True),
        (signal.SIGTERM, OUT_OF_TIME, ["2:00"], True),
        (signal.SIGTERM, COMPLETES, [], False),
        (signal.SIGTERM, None, [], False),
    ],
)
def test_when_a_job_goes_back_to_its_queue(queue, monkeypatch, number, job, limits, goes_back):
    def answer() -> Job:
        if job is None:
            raise subprocess.TimeoutExpired("squeue", 60)
        return job

    seen: list[str] = []
    monkeypatch.setattr(slurm, "this_job", answer)
    with pytest.raises(SystemExit) if goes_back else contextlib.nullcontext():
        back_to_the_queue(number, seen.append)
    assert (seen, bool(queue)) == (limits, goes_back)


def test_a_controller_that_is_away_for_a_while(queue, monkeypatch):
    answers = iter([OSError("busy"), slurm.NoAnswer("no controller"), RUNS])
    refusals = iter([subprocess.CalledProcessError(1, "scontrol"), SystemExit(255)])

    def next_of(results) -> Job:
        result = next(results)
        if isinstance(result, BaseException):
            raise result
        return result

    monkeypatch.setattr(interruption, "_PATIENCE_S", 60.0)
    monkeypatch.setattr(interruption, "_ASKS_FOR_S", 60.0)
    monkeypatch.setattr(slurm, "this_job", lambda: next_of(answers))
    signal.signal(signal.SIGUSR2, lambda number, frame: next_of(refusals))
    with pytest.raises(SystemExit):
        back_to_the_queue(signal.SIGUSR2, lambda limit: None)
    assert (list(answers), list(refusals)) == ([], [])


def test_a_job_that_was_timed_out_too_often(queue, monkeypatch):
    def refuse(number: int, frame: object) -> None:
        raise UncompletedJobError("Job not requeued because: timed-out too many times.")

    monkeypatch.setattr(slurm, "this_job", lambda: RUNS)
    signal.signal(signal.SIGUSR2, refuse)
    with pytest.raises(UserError, match=r"more often than .*max_num_timeout allows"):
        back_to_the_queue(signal.SIGUSR2, lambda limit: None)


def test_what_came_while_modules_were_imported(queue, monkeypatch, compose, tmp_path):
    """It neither requeues a job whose run says nothing yet, nor is it forgotten."""
    monkeypatch.setattr(slurm, "this_job", lambda: RUNS)
    hold_back()
    os.kill(os.getpid(), signal.SIGUSR2)
    assert queue == []
    with pytest.raises(Preempted), Run.open(tmp_path, compose(), []):
        pytest.fail("the run began")
    assert read_json(tmp_path / "run.json")["status"] == "preempted"
    with pytest.raises(SystemExit):
        back_to_the_queue(signal.SIGUSR2, lambda limit: None)
    assert queue == [signal.SIGUSR2]


def test_what_a_library_makes_of_a_signal_is_none_of_its_errors(compose, tmp_path):
    """It breaks in anywhere: here the second error hides the first, as one in a context manager's end does."""

    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise AttributeError("'NoneType' object has no attribute 'half_done'")

    def stages() -> None:
        with Run.open(tmp_path, compose(), []) as run, run.stage("train"):
            library()

    with pytest.raises(Preempted, match="SIGTERM"):
        stages()
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["stages"]["train"]["status"]) == ("preempted", "preempted")
    assert "error" not in record


def start(arguments: list[str], cwd: Path, data_dir: Path) -> subprocess.Popen[str]:
    environment = cli_environment(data_dir)
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{cwd}"
    return subprocess.Popen(
        [sys.executable, "-m", "vlmexp", *arguments], cwd=cwd, env=environment, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )  # fmt: skip


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_kill_stops_a_stage_at_once(number, tmp_path, data_dir):
    (tmp_path / "probe.py").write_text("import time\ndef stage(config, run):\n    time.sleep(600)\n    return {}\n")
    process = start(["stage=probe.stage"], tmp_path, data_dir)
    wait_for(lambda: list(tmp_path.glob("outputs/*/*/run.json")))
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert f"Stopped by {number.name}. Continue with run={only_run(tmp_path)}" in said
    assert read_json(only_run(tmp_path) / "run.json")["status"] == "preempted"


@pytest.mark.slow
def test_ctrl_c_while_modules_are_imported(tmp_path, data_dir):
    """It comes as `hydra` is looked for."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "def kill(event, arguments):\n"
        "    if event == 'import' and arguments[0] == 'hydra':\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.addaudithook(kill)\n"
    )
    process = start(["peft.r=2"], tmp_path, data_dir)
    assert process.communicate(timeout=60)[1] == ""
    assert process.returncode == 130


@pytest.mark.slow
def test_kill_as_the_run_begins(cli, tmp_path):
    """When its first run.json has just been given its name; the stage's module is imported before."""
    (tmp_path / "probe.py").write_text(
        "import os, signal, sys\n"
        "def kill(event, arguments):\n"
        "    if event == 'os.remove' and str(arguments[0]).endswith('.run.json.partial'):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.addaudithook(kill)\n"
        "def stage(config, run):\n    return {}\n"
    )
    done = cli("stage=probe.stage", "hydra.run.dir=run", PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    assert done.returncode == 143, done.stderr
    assert read_json(tmp_path / "run" / "run.json")["status"] == "preempted"


@pytest.mark.slow
def test_kill_saves_a_training(cli, tmp_path, data_dir):
    run = tmp_path / "run"
    process = start([*TRAINING, f"hydra.run.dir={run}"], tmp_path, data_dir)
    wait_for(lambda: len(read_jsonl(run / "metrics.jsonl")) >= 3)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert read_json(run / "run.json")["status"] == "preempted"
    (checkpoint,) = (run / "checkpoints").iterdir()
    done = cli(f"run={run}", timeout=300)
    assert done.returncode == 0, done.stderr
    assert read_json(run / "run.json")["stages"]["train"]["resumed_from"] == checkpoint.name
    assert [row["step"] for row in read_jsonl(run / "metrics.jsonl")] == list(range(1, 31))
