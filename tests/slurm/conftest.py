from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT, cli_environment
from tests.slurm.cluster import Cluster, missing_programs, running_cluster
from vlmexp.files import read_json, read_jsonl

Submit = Callable[..., "subprocess.Popen[str]"]


LAUNCHER = [
    "hydra/launcher=slurm", "hydra.sweep.dir=sweep", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1",
]  # fmt: skip
TRAINING = [
    "stage=train", "threads=1", "train.per_device_train_batch_size=8", "train.gradient_accumulation_steps=1",
    "train.logging_steps=1", "train.eval_strategy=no", "export.parity_examples=0", "train.memory_preflight=false",
    "dataset.max_examples={train: 640, validation: 8, test: 8}",
]  # fmt: skip


def records(sweep: Path) -> dict[int, dict]:
    return {int(path.parent.name): read_json(path) for path in sweep.glob("[0-9]*/run.json")}


def last_step(run: Path) -> int:
    return max((row["step"] for row in read_jsonl(run / "metrics.jsonl")), default=0)


def python_of(job: str, rank: int = 0) -> int:
    """Process id, as this machine counts, of the Python that a job runs."""
    array, _, task = job.partition("_")
    wanted = {f"SLURM_ARRAY_JOB_ID={array}", f"SLURM_ARRAY_TASK_ID={task}"} if task else {f"SLURM_JOB_ID={array}"}
    wanted.add(f"SLURM_PROCID={rank}")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            command = (folder / "cmdline").read_bytes().split(b"\0")
            is_python = b"submitit.core._submit" in command and b"python" in command[0]  # srun has the former as well
            if is_python and wanted <= set((folder / "environ").read_text(errors="replace").split("\0")):
                return int(folder.name)
    raise AssertionError(f"no process of job {job}")


def processes_of(slurm: Cluster, job: str) -> list[int]:
    """Process ids, as this machine counts, of a job's slurmstepd and of everything below them."""
    number = slurm.run("squeue", "-h", "-j", job, "-o", "%A").strip()
    parents: dict[int, int] = {}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if (folder / "cmdline").read_bytes().startswith(f"slurmstepd: [{number}.".encode()):
                found.append(int(folder.name))
    for pid in found:  # grows on the way
        found += [child for child, parent in parents.items() if parent == pid]
    return found


@pytest.fixture(scope="session")
def slurm() -> Iterator[Cluster]:
    """A SLURM of two nodes with two CPUs each."""
    if missing := missing_programs():
        pytest.skip(f"SLURM is not installed: no {', '.join(missing)} (Debian: apt-get install slurm-wlm munge)")
    with running_cluster() as cluster:
        yield cluster


@pytest.fixture
def submit(slurm: Cluster, tmp_path: Path, data_dir: Path) -> Iterator[Submit]:
    """Start `python -m vlmexp ...` where SLURM is; in the end no client runs and the queue is empty."""
    clients: list[subprocess.Popen[str]] = []

    def start(*arguments: str, code: Path = ROOT, **variables: str) -> subprocess.Popen[str]:
        environment = cli_environment(data_dir) | slurm.environment | variables
        environment["PYTHONPATH"] = os.pathsep.join([str(code), str(tmp_path), environment["PYTHONPATH"]])
        client = subprocess.Popen(
            [sys.executable, "-m", "vlmexp", *arguments],
            cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
        clients.append(client)
        return client

    yield start
    for client in clients:
        if client.poll() is None:
            client.send_signal(signal.SIGKILL)
        client.communicate()
    slurm.clear()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what a checkout runs from."""
    for name in ("vlmexp", "conf", "hydra_plugins"):
        shutil.copytree(ROOT / name, tmp_path / "checkout" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "checkout"
