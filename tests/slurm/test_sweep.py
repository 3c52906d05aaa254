"""A sweep on a real SLURM: points that fail, are preempted, requeued or killed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import LAUNCHER, TRAINING, Submit, last_step, processes_of, python_of, records
from vlmexp.files import read_jsonl
from vlmexp.launch.sweep import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]


def test_a_sweep_with_a_failing_point(submit: Submit, slurm: Cluster, tmp_path: Path, checkout: Path):
    """Six points, two at a time; one fails, the others go on; what is edited meanwhile changes nothing."""
    sweep = tmp_path / "sweep"
    (tmp_path / "probe.py").write_text(
        "def stage(config, run):\n    assert not run.path('model').exists(), 'out of luck'\n    return {}\n"
    )
    client = submit(
        "-m", "stage=probe.stage", "peft.r=2,4,8", "train.learning_rate=1e-3,2e-3", *LAUNCHER,
        "hydra.launcher.array_parallelism=2", code=checkout,
    )  # fmt: skip
    wait_until(lambda: (sweep / "jobs.jsonl").exists(), "the points are submitted")
    assert len(read_jsonl(sweep / "points.jsonl")) == 6
    (checkout / "vlmexp" / "main.py").write_text("raise RuntimeError('edited after submission')\n")
    (sweep / "5").mkdir()
    (sweep / "5" / "model").write_text("a file where a folder has to go")
    at_once = 0
    while client.poll() is None:
        at_once = max(at_once, slurm.run("squeue", "-h", "-r", "-t", "RUNNING", "-o", "%i").count("\n"))
    said, errors = client.communicate()
    assert client.returncode == 1, errors
    assert at_once == 2
    assert {number: record["status"] for number, record in records(sweep).items()} == {
        0: "done", 1: "done", 2: "done", 3: "done", 4: "done", 5: "failed",
    }  # fmt: skip
    assert "1 of 6 points did not reach their end" in errors
    assert "point 5 failed: peft.r=8 train.learning_rate=0.002" in errors
    assert "AssertionError: out of luck" in errors
    assert f"log: {sweep / '5' / 'train.log'}" in errors
    jobs = Sweep(sweep).jobs
    assert [slurm.end(jobs[number]) for number in range(6)] == ["COMPLETED"] * 5 + ["FAILED"]

    (sweep / "5" / "model").unlink()
    nothing = submit("stage=resume", f"sweep={sweep}")
    assert "0 of 6 points to run (5 done, 1 failed)" in nothing.communicate()[0]
    again = submit("stage=resume", f"sweep={sweep}", "resume.failed=true")
    said, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "1 of 6 points to run (5 done)" in said
    assert len(records(sweep)[5]["attempts"]) == 2
    table = submit("stage=status", f"sweep={sweep}").communicate()[0]
    assert "6 done" in table
    assert not (tmp_path / "outputs").exists()


def test_every_kind_of_end(submit: Submit, slurm: Cluster, tmp_path: Path):
    """Preempted, requeued, killed, gone with its slurmstepd, left alone: the same weights, bit for bit."""
    sweep = tmp_path / "sweep"
    names = ["preempted", "requeued", "killed", "gone", "calm"]
    client = submit(
        "-m", *TRAINING, f"tracking.name={','.join(names)}", "train.max_steps=30", "train.save_steps=5",
        "peft.lora_dropout=0.1", *LAUNCHER, "hydra.launcher.cpus_per_task=2",
    )  # fmt: skip
    runs = dict(zip(names, (sweep / str(number) for number in range(5)), strict=True))

    def trains(name: str, step: int = 3) -> None:
        wait_until(lambda: last_step(runs[name]) >= step, f"{name} trains")

    wait_until(lambda: (sweep / "jobs.jsonl").exists(), "the points are submitted")
    jobs = dict(zip(names, Sweep(sweep).jobs.values(), strict=True))
    trains("preempted")
    node = slurm.run("squeue", "-h", "-j", jobs["preempted"], "-o", "%N").strip()
    slurm.run("sbatch", "-p", "high", "-w", node, "-n2", "-o", "/dev/null", "--wrap", "sleep 1")
    trains("requeued")
    slurm.run("scontrol", "requeue", jobs["requeued"])
    trains("killed")
    os.kill(python_of(jobs["killed"]), signal.SIGKILL)
    trains("gone", step=7)
    for pid in processes_of(slurm, jobs["gone"]):
        with contextlib.suppress(ProcessLookupError):  # which went with another one
            os.kill(pid, signal.SIGKILL)

    def is_missed() -> bool:
        """Let the nodes tell what they run, which they do every few minutes; a job so new is given some time."""
        slurm.run("scontrol", "reconfigure")
        time.sleep(1)
        return "Restarts=1" in slurm.run("scontrol", "show", "job", jobs["gone"])

    wait_until(is_missed, "SLURM misses the job that is gone")

    said, errors = client.communicate()
    assert client.returncode == 1, errors
    assert "1 of 5 points did not reach their end" in errors
    assert "point 2 lost: tracking.name=killed" in errors
    assert slurm.end(jobs["killed"]) == "FAILED"
    assert {slurm.end(jobs[name]) for name in ("preempted", "gone")} == {"COMPLETED"}
    again = submit("stage=resume", f"sweep={sweep}")
    said, errors = again.communicate()
    assert again.returncode == 0, errors
    assert "1 of 5 points to run (4 done)" in said

    ends = [[attempt.get("status") for attempt in record["attempts"]] for _, record in sorted(records(sweep).items())]
    told, untold = ["preempted", "done"], [None, "done"]
    assert ends == [told, told, untold, untold, ["done"]]
    resumed = [record["stages"]["train"]["resumed_from"] for _, record in sorted(records(sweep).items())]
    assert all(resumed[:2])
    assert resumed[3] in ("checkpoint-5", "checkpoint-10", "checkpoint-15")  # it trained on while it was being killed
    assert resumed[4] is None
    for name in names:
        for file in ("model/adapter_model.safetensors", "deployment_model/model.safetensors"):
            assert (runs[name] / file).read_bytes() == (runs["calm"] / file).read_bytes(), (name, file)


def test_a_client_that_does_not_wait_and_a_cancelled_job(submit: Submit, slurm: Cluster, tmp_path: Path):
    """wait=false returns at once; scancel ends a job, which says preempted and does not come back."""
    sweep = tmp_path / "sweep"
    (tmp_path / "probe.py").write_text("import time\ndef stage(config, run):\n    time.sleep(600)\n")
    client = submit("-m", "stage=probe.stage", "peft.r=2,4", *LAUNCHER, "hydra.launcher.wait=false")
    said, errors = client.communicate()
    assert client.returncode == 0, errors
    assert f"stage=status sweep={sweep}" in said
    wait_until(lambda: len(records(sweep)) == 2, "both points run")
    assert "2 running" in submit("stage=status", f"sweep={sweep}").communicate()[0]
    again = submit("-m", "stage=probe.stage", "peft.r=2,4", *LAUNCHER, "hydra.launcher.wait=false")
    assert "0 of 2 points to run" in again.communicate()[0]
    job = Sweep(sweep).jobs[0]
    slurm.run("scancel", job.partition("_")[0])
    wait_until(lambda: slurm.state(job) == "CANCELLED", "the job is cancelled")
    wait_until(lambda: not slurm.run("squeue", "-h"), "the queue is empty")
    # SLURM forgets a job with its script; what the script has started may still be writing.
    wait_until(lambda: [r["status"] for r in records(sweep).values()] == ["preempted"] * 2, "both runs say so")
    assert "2 preempted" in submit("stage=status", f"sweep={sweep}").communicate()[0]


def test_a_job_that_can_never_start_is_told_of(submit: Submit, slurm: Cluster, tmp_path: Path):
    client = submit("-m", "peft.r=2", *LAUNCHER, "hydra.launcher.nodes=5")
    assert client.stdout is not None
    said = [client.stdout.readline() for _ in range(3)]
    job = Sweep(tmp_path / "sweep").jobs[0]
    assert f"point   0  pending: SLURM does not start job {job} (PartitionConfig)" in said[2]
    assert "pending (PartitionConfig)" in submit("stage=status", "sweep=sweep").communicate()[0]
    slurm.run("scancel", job)
    errors = client.communicate()[1]
    assert client.returncode == 1
    assert "The job has written nothing, not even to" in errors


def test_what_sbatch_refuses_is_one_sentence(submit: Submit, tmp_path: Path):
    client = submit("-m", "peft.r=2,4", *LAUNCHER, "hydra.launcher.partition=nowhere")
    errors = client.communicate()[1]
    assert client.returncode == 2
    assert "invalid partition specified: nowhere" in errors
    assert "Traceback" not in errors
