"""A real SLURM of two nodes on this machine: munged, slurmctld and two slurmd in a process namespace of their own.

The namespace ends with the process that started it, however that ends, and takes every daemon and job along.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "setpriv", "unshare")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
SlurmdSpoolDir={folder}/spool.%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
KillWait=10
MinJobAge=300
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName=n[0-1] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{ports[1]}-{ports[2]}] CPUs=2 RealMemory=10000
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
"""

START = """
munged --foreground --force --key-file="$1/munge.key" --socket="$1/munge.socket" --pid-file="$1/munged.pid" \\
    --seed-file="$1/munge.seed" --log-file="$1/munged.log" --num-threads=2 &
until [ -S "$1/munge.socket" ]; do sleep 0.05; done
slurmctld -D &
slurmd -D -N n0 &
slurmd -D -N n1 &
wait -n
"""


def missing_programs() -> list[str]:
    """What has to be installed before a cluster can be started."""
    return [name for name in PROGRAMS if not shutil.which(name)]


class Cluster:
    """A running cluster; `environment` is what its commands need."""

    def __init__(self, conf: Path) -> None:
        self.environment = {"SLURM_CONF": str(conf)}

    def run(self, *command: str) -> str:
        """The output of one of SLURM's commands."""
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")
        return done.stdout

    def state(self, job: str) -> str:
        """State of a job, finished ones included, such as RUNNING or FAILED."""
        return self.run("squeue", "-h", "-r", "-t", "all", "-j", job, "-o", "%T").strip()

    def end(self, job: str) -> str:
        """State of a job that has come to its end, of which SLURM may hear a moment later."""
        wait_until(lambda: self.state(job) not in ("RUNNING", "COMPLETING"), f"SLURM knows that {job} has ended")
        return self.state(job)

    def clear(self) -> None:
        """Cancel all jobs and wait until none is left."""
        self.run("scancel", "--full", "--signal=KILL", "--user=root")
        self.run("scancel", "--user=root")
        wait_until(lambda: not self.run("squeue", "-h"), "the queue is empty")


def wait_until(condition: Callable[[], object], what: str, seconds: float = 120) -> None:
    """Poll until the condition holds; fail after a time that only a hanging program needs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not after {seconds} s: {what}")
        time.sleep(0.1)


@contextlib.contextmanager
def running_cluster() -> Iterator[Cluster]:
    """Start a cluster in a folder of its own; on leaving the block nothing of it is left."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))  # a short path: that of a socket may have 107 characters
    conf = folder / "slurm.conf"
    (folder / "state").mkdir()
    (folder / "munge.key").write_bytes(os.urandom(128))
    (folder / "munge.key").chmod(0o600)
    conf.write_text(CONF.format(host=socket.gethostname(), ports=_free_ports(3), folder=folder))
    environment = os.environ | {"SLURM_CONF": str(conf)}
    with (folder / "daemons.log").open("w") as log:
        daemons = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", "--pid", "--fork", "--kill-child", "--mount-proc",
             "bash", "-c", START, "cluster", str(folder)],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        cluster = Cluster(conf)

        def both_idle() -> bool:
            if daemons.poll() is not None:
                raise RuntimeError(f"SLURM did not start:\n{(folder / 'daemons.log').read_text()[-3000:]}")
            with contextlib.suppress(RuntimeError):
                return cluster.run("sinfo", "-h", "-N", "-p", "low", "-o", "%T").split() == ["idle", "idle"]
            return False

        wait_until(both_idle, "both nodes are idle")
        yield cluster
    finally:
        daemons.send_signal(signal.SIGKILL)
        daemons.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports in a row that nothing listens on."""
    for first in range(16817 + os.getpid() % 1000 * 10, 60000, 10):
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise RuntimeError("no free ports")
