"""Jobs of several processes on two nodes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.conftest import LAUNCHER, TRAINING, Submit, last_step, python_of, records
from vlmexp.files import read_jsonl
from vlmexp.launch.sweep import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

RANKS = [
    *LAUNCHER, "hydra.launcher.cpus_per_task=2", "hydra.launcher.nodes=2", "train.per_device_train_batch_size=4",
]  # fmt: skip


def test_two_nodes_train_like_one_process(submit: Submit, slurm: Cluster, tmp_path: Path):
    """2 x 4 examples a step and a requeue on the way: the losses of 1 x 8 examples."""
    one = submit(*TRAINING, "train.max_steps=10", "train.save_steps=50", "hydra.run.dir=one")
    assert one.wait() == 0, one.communicate()[1]
    sweep = tmp_path / "sweep"
    client = submit("-m", *TRAINING, "train.max_steps=10", "train.save_steps=50", *RANKS)
    wait_until(lambda: last_step(sweep / "0") >= 3, "training has begun")
    os.kill(python_of(Sweep(sweep).jobs[0], rank=0), signal.SIGSTOP)  # or it would be over first
    slurm.run("scancel", "--signal=USR2", Sweep(sweep).jobs[0])
    os.kill(python_of(Sweep(sweep).jobs[0], rank=0), signal.SIGCONT)
    _, errors = client.communicate()
    assert client.returncode == 0, errors
    record = records(sweep)[0]
    assert [attempt["status"] for attempt in record["attempts"]] == ["preempted", "done"]
    assert record["stages"]["train"]["resumed_from"] is not None
    lines = [read_jsonl(run / "metrics.jsonl") for run in (tmp_path / "one", sweep / "0")]
    assert [row["step"] for row in lines[1]] == list(range(1, 11))
    for alone, together in zip(*lines, strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-3)
    logs = [path.name for path in Sweep(sweep).logs(Sweep(sweep).jobs[0])]
    assert [name.partition("_")[2] for name in logs if name.endswith(".out")] == ["0_log.out", "1_log.out"]
    assert (sweep / "0" / "train-rank1.log").exists()


def test_a_rank_that_dies_ends_its_job(submit: Submit, slurm: Cluster, tmp_path: Path):
    sweep = tmp_path / "sweep"
    client = submit("-m", *TRAINING, "train.max_steps=10000", "train.save_steps=100000", *RANKS)
    wait_until(lambda: last_step(sweep / "0") >= 1, "training has begun")
    os.kill(python_of(Sweep(sweep).jobs[0], rank=1), signal.SIGKILL)
    _, errors = client.communicate(timeout=120)
    assert client.returncode == 1
    assert "1 of 1 points did not reach their end" in errors
    assert "0_log.err" in errors or "train.log" in errors
    assert slurm.end(Sweep(sweep).jobs[0]) == "FAILED"
