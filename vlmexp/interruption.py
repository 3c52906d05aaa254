"""Being told to stop: SIGTERM, Ctrl-C, and the signal by which submitit announces a preemption or a time limit.

A stage that can be repeated is left at once, an evaluation behind the batch it is at. Training ends at its next step
boundary, behind a checkpoint; a second Ctrl-C does not wait for it. Either way the run's status becomes `preempted`,
and the job goes back into its queue if it came from one.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from vlmexp import distributed

QUEUE_SIGNAL = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
_REQUEUED_RANK_WAITS_S = 120.0


class Preempted(BaseException):
    """The run was told to stop and can be continued. No error: `except Exception` lets it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.exit_code = 128 + number  # what a shell reports for a process that a signal has ended


class Interruption:
    """Listens for the signals; `signal` is the first that came."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._deferred = False
        self._pid = os.getpid()

    @classmethod
    @contextlib.contextmanager
    def listening(cls) -> Iterator[Interruption]:
        """Listen for the length of the block, then put the handlers back that were there before."""
        interruption = cls()
        if threading.current_thread() is not threading.main_thread():
            yield interruption  # only the main thread may install handlers
            return
        listened = [signal.SIGTERM, QUEUE_SIGNAL]
        if callable(signal.getsignal(signal.SIGINT)):  # the background jobs of a shell ignore it
            listened.append(signal.SIGINT)
        before = {number: signal.signal(number, interruption._receive) for number in listened}
        try:
            yield interruption
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block a signal is noted and raises nothing; at the block's regular end it raises Preempted.

        A second Ctrl-C raises it at once.
        """
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """Raise Preempted if a signal has come."""
        if self.signal is not None:
            raise Preempted(self.signal)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a forked worker inherits the handler, and whoever forked it may want to end it
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        # torchrun passes a Ctrl-C on to its processes, which have had it from the terminal.
        insists = self._deferred and self.signal == number == signal.SIGINT and distributed.world_size() == 1
        if self.signal is None or insists:
            self.signal = number
            if insists or not self._deferred:
                raise Preempted(number)


@contextlib.contextmanager
def uninterrupted() -> Iterator[None]:
    """A Ctrl-C within the block takes effect at its end, and programs that the block starts never see one.

    They would: a terminal sends it to all that it runs. Programs inherit that it is ignored; here it is blocked too,
    and what is blocked waits until somebody asks. Threads of libraries, such as NumPy's, block nothing: where there are
    some, one of them takes it, and it has to be given again.
    """
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        came = signal.sigtimedwait({signal.SIGINT}, 0)
        signal.signal(signal.SIGINT, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if came is not None:
            raise KeyboardInterrupt


@contextlib.contextmanager
def on_interrupt(act: Callable[[], None]) -> Iterator[None]:
    """Within `uninterrupted`: a Ctrl-C in this block, which starts no programs, calls `act` at once."""
    before = signal.signal(signal.SIGINT, lambda number, frame: act())
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler of a signal that means what Ctrl-C does, and is held back where that is."""
    if callable(signal.getsignal(signal.SIGINT)) or signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        signal.raise_signal(signal.SIGINT)
    else:  # as in the background jobs of a shell, which do not mind Ctrl-C
        raise KeyboardInterrupt


def back_to_the_queue(number: int) -> None:
    """If this job came from submitit and its queue has not decided by itself, have it run again; does not return then.

    SLURM announces a preemption or a time limit while the job's state is still RUNNING. In any other state it has
    decided already: to requeue the job, or, after scancel, not to. A SIGTERM of a running job that nobody preempts says
    that another of its ranks has died. Outside SLURM, SIGTERM is a user's wish to stop.

    Args:
        number: of the signal that came.

    Raises:
        submitit's UncompletedJobError: the job has been timed out as often as `max_num_timeout` allows.
    """
    requeue = signal.getsignal(QUEUE_SIGNAL)
    in_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if "SUBMITIT_EXECUTOR" not in os.environ or not callable(requeue):
        return
    if not (_slurm_awaits_us(number) if in_slurm else number == QUEUE_SIGNAL):
        return
    requeue(QUEUE_SIGNAL, None)
    if in_slurm:  # only rank 0 requeues; were another rank to end now, SLURM would take the job for a failed one
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(_REQUEUED_RANK_WAITS_S)


def _slurm_awaits_us(number: int) -> bool:
    show = subprocess.run(
        ["scontrol", "show", "job", "-o", os.environ["SLURM_JOB_ID"]], capture_output=True, text=True, timeout=60
    )
    job = dict(word.split("=", 1) for word in show.stdout.split() if "=" in word)
    is_preempted = job.get("PreemptTime", "None") != "None"
    return job.get("JobState") == "RUNNING" and (number == QUEUE_SIGNAL or is_preempted)
