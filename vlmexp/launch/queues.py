"""Where jobs go: SLURM, or processes of this machine; both through submitit."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from vlmexp import programs
from vlmexp.errors import UserError
from vlmexp.files import write_text
from vlmexp.interruption import QUEUE_SIGNAL, on_interrupt
from vlmexp.launch.point import GPUS
from vlmexp.launch.snapshot import python_environment, shell_lines
from vlmexp.launch.sweep import ENDING
from vlmexp.slurm import squeue

# Settings that all of submitit's executors know; what else there is gets the executor's name before it.
_SHARED = (
    "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name", "stderr_to_stdout",
)  # fmt: skip
# sbatch prefers these variables to what its script says. A job without the signal or the requeue does not come back.
_OVERRULING = ("SBATCH_TIMELIMIT", "SBATCH_SIGNAL", "SBATCH_NO_REQUEUE", "SBATCH_ARRAY_INX", "SBATCH_OPEN_MODE")
# Those of an array's task that submits would tell its jobs that they are this task.
_OF_AN_ARRAY = (
    "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN",
    "SLURM_ARRAY_TASK_MAX", "SLURM_ARRAY_TASK_STEP",
)  # fmt: skip
# Python starts deaf to both signals, until submitit listens: either would end it, and SLURM would take the job for a
# failed one. One that is missed comes again at the limit itself, and what is preempted SLURM requeues by itself.
_DEAF_AT_FIRST = f"""sh -c 'trap "" {QUEUE_SIGNAL.name.removeprefix("SIG")} TERM; exec "$0" "$@"' """
# Settings that are for the launcher and not for the job.
_OURS = ("submitit_folder", "max_num_timeout", "wait", "cancel_on_interrupt")


class Queue(Protocol):
    """What a launcher needs to know of a queue."""

    patience_s: float  # at most this long between two looks at it

    @property
    def parallel(self) -> int | None:
        """How many jobs the client may have in it at once; None: the queue sees to it."""

    def submit(self, functions: Sequence[Any], snapshot: Path) -> list[str]:
        """One job for each function, run with the code of the snapshot; returns the jobs' names."""

    def states(self, jobs: Sequence[str]) -> dict[str, str] | None:
        """Job -> state of those jobs that have not ended, with the reason if it waits for one: `PENDING Priority`.

        None if the queue does not answer.
        """

    def cancel(self, jobs: Sequence[str]) -> str | None:
        """Tell jobs to save and to end, while Ctrl-C is held back; returns what the queue has against it."""

    def cancel_command(self, jobs: Sequence[str]) -> str:
        """What a user types for that."""


def queue_of(kind: str, settings: Mapping[str, Any], folder: Path) -> Queue:
    """The queue that a launcher's settings describe; job files and output go below `folder`."""
    kinds: dict[str, Callable[[Mapping[str, Any], Path], Queue]] = {
        "slurm": SlurmQueue, "local": LocalQueue, "foreground": ForegroundQueue,
    }  # fmt: skip
    return kinds[kind](settings, folder)


class SlurmQueue:
    """SLURM, through sbatch, squeue and scancel. Accounting is not needed: a run directory tells how its run ended."""

    parallel = None
    patience_s = 15.0

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        self.settings, self.folder = settings, folder

    def submit(self, functions: Sequence[Any], snapshot: Path) -> list[str]:
        import submitit
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        for program in ("srun", "sbatch"):
            if not shutil.which(program):
                raise UserError(
                    f"hydra/launcher=slurm: there is no {program} on this machine. Submit from a login node of the "
                    "cluster, or choose hydra/launcher=slurm_local."
                )
        executor = submitit.AutoExecutor(
            self.folder / "%j",
            cluster="slurm",
            slurm_max_num_timeout=self.settings["max_num_timeout"],
            slurm_python=_DEAF_AT_FIRST + shlex.quote(sys.executable),
        )
        parameters = {
            name if name in _SHARED else f"slurm_{name}": value
            for name, value in self.settings.items()
            if name not in _OURS and value is not None
        }
        # A rank that dies ends its job, instead of leaving the others to wait for it.
        ours = shell_lines({**python_environment(snapshot), "SLURM_KILL_BAD_EXIT": "1"})
        parameters["slurm_setup"] = [*(self.settings.get("setup") or []), *ours]
        try:
            executor.update_parameters(**parameters)
            with _environment(dict.fromkeys((*_OVERRULING, *_OF_AN_ARRAY))):
                return [job.job_id for job in executor.submit_array(functions)]
        except (FailedJobError, FailedSubmissionError, subprocess.CalledProcessError) as error:
            raise UserError(f"hydra/launcher=slurm: sbatch refuses the jobs: {' '.join(str(error).split())}") from None
        except (ValueError, TypeError, NameError) as error:
            raise UserError(f"hydra.launcher: {' '.join(str(error).split())}") from None

    def states(self, jobs: Sequence[str]) -> dict[str, str] | None:
        arrays = ",".join(sorted({job.partition("_")[0] for job in jobs}))
        try:
            asked = squeue("-h", "-r", "-o", "%i|%T %r", "-j", arrays)
        except (OSError, subprocess.TimeoutExpired):
            return None
        if asked.returncode and "Invalid job id" not in asked.stderr:
            return None
        found = dict(line.split("|", 1) for line in asked.stdout.splitlines())
        return {job: found[job].removesuffix(" None") for job in jobs if job in found}

    def cancel(self, jobs: Sequence[str]) -> str | None:
        states = self.states(jobs)
        there = list(jobs if states is None else states)
        if not there:
            return None
        try:
            told = subprocess.run([programs.program("scancel"), *there], capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
        return " ".join(told.stderr.split()) if told.returncode else None

    def cancel_command(self, jobs: Sequence[str]) -> str:
        return f"scancel {' '.join(sorted({job.partition('_')[0] for job in jobs}))}"


class LocalQueue:
    """Processes of this machine, at most `array_parallelism` at once, which outlive the client."""

    patience_s = 1.0

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        self.settings, self.folder = settings, folder
        self.parallel: int | None = settings["array_parallelism"]

    def submit(self, functions: Sequence[Any], snapshot: Path) -> list[str]:
        import submitit

        executor = submitit.AutoExecutor(
            self.folder / "%j", cluster="local", local_max_num_timeout=self.settings["max_num_timeout"]
        )
        executor.update_parameters(
            **{name: self.settings[name] for name in _SHARED if self.settings.get(name) is not None}
        )
        environment = python_environment(snapshot)
        if self.settings["gpus_per_node"] is None and "CUDA_VISIBLE_DEVICES" in os.environ:
            environment[GPUS] = os.environ["CUDA_VISIBLE_DEVICES"]
        with _environment(environment), _detached(self.folder / "controllers.log"):
            return [executor.submit(function).job_id for function in functions]

    def states(self, jobs: Sequence[str]) -> dict[str, str] | None:
        return {job: "RUNNING" for job in jobs if _is_alive(job, self.folder)}

    def cancel(self, jobs: Sequence[str]) -> str | None:
        for job in jobs:
            if _is_alive(job, self.folder):
                os.kill(int(job), signal.SIGTERM)  # submitit's controller passes it on
        return None

    def cancel_command(self, jobs: Sequence[str]) -> str:
        return f"kill {' '.join(jobs)}"


class ForegroundQueue:
    """One process after the other, each on the client's terminal; none outlives a client that is interrupted."""

    patience_s = 0.5
    parallel: int | None = 1

    def __init__(self, settings: Mapping[str, Any], folder: Path) -> None:
        self.folder, self.sweep = folder, folder.parent
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, functions: Sequence[Any], snapshot: Path) -> list[str]:
        with _environment(python_environment(snapshot)):
            started = [subprocess.Popen(function.command()) for function in functions]
        self._processes |= {str(process.pid): process for process in started}
        return [str(process.pid) for process in started]

    def states(self, jobs: Sequence[str]) -> dict[str, str] | None:
        for job, process in list(self._processes.items()):
            if process.poll() is not None:
                del self._processes[job]
                with contextlib.suppress(OSError):  # on a full disk the point's end counts all the same
                    write_text(self.folder / job / ENDING, _ending(process.returncode))
        return {job: "RUNNING" for job in jobs if job in self._processes or _is_alive(job, self.sweep)}

    def cancel(self, jobs: Sequence[str]) -> str | None:
        for process in (self._processes[job] for job in jobs if job in self._processes):  # not another client's
            process.terminate()
            with on_interrupt(process.kill):  # of somebody for whom saving takes too long
                process.wait()
        return None

    def cancel_command(self, jobs: Sequence[str]) -> str:
        return f"kill {' '.join(jobs)}"


def _is_alive(job: str, folder: Path) -> bool:
    """Whether the process is there and its command line names the folder, so that it is ours."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(int(job), os.WNOHANG)  # the client's own child stays a zombie until someone asks
    with contextlib.suppress(OSError):
        Path("/proc", job, "exe").readlink()  # a zombie, for which in a container perhaps nobody asks, has no program
        command = Path("/proc", job, "cmdline").read_bytes()  # empty for a moment while the program is loaded
        return str(folder).encode() in command or not command
    return False


def _ending(code: int) -> str:
    """What a process's return code, negative after a signal, says of its end."""
    return f"exit status {code}" if code >= 0 else f"killed by signal {-code} ({signal.strsignal(-code)})"


@contextlib.contextmanager
def _environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set variables for the length of the block; None: unset."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@contextlib.contextmanager
def _detached(log: Path) -> Iterator[None]:
    """What the block starts outlives the client: it holds neither its terminal nor a pipe to it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(number) for number in (1, 2)]
    try:
        with log.open("ab") as file:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
        yield
    finally:
        for number, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, number)
            os.close(copy)
