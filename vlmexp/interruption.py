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
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, TypeVar

from vlmexp import distributed, programs, slurm
from vlmexp.errors import UserError

QUEUE_SIGNAL = getattr(signal, "SIG" + os.environ.get("SUBMITIT_PREEMPT_SIGNAL", "USR2"))
# SLURM's controller may be away for minutes, to come back with all that it knew. A job at its limit has nothing better
# to do than to wait for it; SLURM ends one that waits too long, or requeues it, as it would have anyway.
_PATIENCE_S = 600.0
_ASKS_FOR_S = 30.0
_PAUSE_S = 5.0
_RANK_0_FIRST_S = 60.0
Result = TypeVar("Result")


class Preempted(BaseException):
    """The run was told to stop and can be continued. No error: `except Exception` lets it pass."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = number
        self.exit_code = 128 + number  # what a shell reports for a process that a signal has ended


class Interruption:
    """Listens for the signals; `signal` is the first that came, `broke_in` whether it has raised Preempted at once.

    That may be in the middle of a library, which makes another error of it.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.broke_in = False
        self._deferred = True
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
        held = signal.getsignal(QUEUE_SIGNAL)
        before = {number: signal.signal(number, interruption._receive) for number in listened}
        if isinstance(held, _HeldBack) and held.came:
            interruption.signal = QUEUE_SIGNAL
        try:
            interruption._deferred = False
            yield interruption
        finally:
            interruption._deferred = True  # all handlers are put back
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

    @contextlib.contextmanager
    def ended_by_interrupt(self) -> Iterator[None]:
        """A Ctrl-C ends the block, as its work is done, and nothing more."""
        try:
            yield
        except Preempted as stopped:
            if stopped.signal != signal.SIGINT:
                raise
            self.signal, self.broke_in = None, False

    def hold(self) -> None:
        """From here on a signal is noted and raises nothing: how the run has ended is being written."""
        self._deferred = True

    def reason(self, error: BaseException) -> BaseException:
        """Why the run ends: an error may only say that other ranks of the job have left, told to do so or not."""
        if distributed.world_size() == 1 or not isinstance(error, RuntimeError):  # as torch raises of a broken link
            return error
        number = self.signal if self.signal is not None else distributed.announced_stop()
        return distributed.without_rank(error) if number is None else Preempted(number)

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
                self.broke_in = True
                raise Preempted(number)


def keep_exit_code() -> None:
    """Let a rank that was told to stop end as it would, when its launcher signals it because another one has ended."""
    if distributed.world_size() > 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


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


class _HeldBack:
    """A handler that notes the signal, in the place of submitit's."""

    def __init__(self, requeue: Callable[[int, FrameType | None], Any]) -> None:
        self.requeue = requeue
        self.came = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.came = True


def hold_back() -> None:
    """From now on the queue's signal waits until a run listens, which can say then how far it is.

    submitit's own handler would put the job back at once, as often as it is told to while modules are imported.
    """
    requeue = signal.getsignal(QUEUE_SIGNAL)
    if callable(requeue):
        signal.signal(QUEUE_SIGNAL, _HeldBack(requeue))


def ignore_signals() -> None:
    """When all is done: Python would have them end the process while it ends itself, and SLURM call the job failed."""
    for number in (QUEUE_SIGNAL, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def is_in_queue() -> bool:
    """Whether submitit runs this process as a job that can go back to its queue."""
    return "SUBMITIT_EXECUTOR" in os.environ and callable(signal.getsignal(QUEUE_SIGNAL))


def back_to_the_queue(number: int, at_limit: Callable[[str], None]) -> None:
    """If this job came from submitit and its queue has not decided by itself, have it run again; does not return then.

    SLURM announces a preemption or a time limit while the job runs. Afterwards it has decided: to requeue the job, or,
    after scancel, not to; only a job that took too long to save has its last moment to be requeued in. A SIGTERM of a
    running job that nobody preempts says that another of its ranks has died. Outside SLURM, SIGTERM is a user's wish to
    stop.

    Args:
        number: of the signal that came.
        at_limit: is told on rank 0 of a time limit, in words, and may raise an error if the job is not to run again.

    Raises:
        UserError: the job has been timed out as often as `max_num_timeout` allows.
    """
    if not is_in_queue():
        return
    handler: Any = signal.getsignal(QUEUE_SIGNAL)
    requeue = handler.requeue if isinstance(handler, _HeldBack) else handler
    in_slurm = os.environ["SUBMITIT_EXECUTOR"] == "slurm"
    limit = _limit_in_slurm(number) if in_slurm else _limit_here(number)
    if limit is None:
        return
    if limit and distributed.rank() == 0:
        at_limit(limit)
    try:
        with programs.users_path():  # submitit starts scontrol by its name
            _persistently(lambda: requeue(QUEUE_SIGNAL, None), _PATIENCE_S)
    except RuntimeError:  # submitit's UncompletedJobError
        raise UserError(
            "The job has come to its time limit more often than hydra.launcher.max_num_timeout allows, and does not "
            "start again by itself: stage=resume goes on with it, if you like with another hydra.launcher.timeout_min."
        ) from None
    if in_slurm and distributed.rank():
        _leave_it_to_rank_0()


def _limit_in_slurm(number: int) -> str | None:
    """The time limit that ends this job, "" if something else does after which it is to run again, or None.

    If nobody says so, the signal has to. The queue's own is sent for a limit or a preemption, and a job that is started
    once too often finds its work done. After SIGTERM it is best to wait for SLURM, which ends what a user has cancelled
    and requeues what it preempts.
    """
    is_announced = number == QUEUE_SIGNAL
    job = _persistently(slurm.this_job, _ASKS_FOR_S if is_announced else _PATIENCE_S)
    if job is None:
        return "" if is_announced else None
    if job.runs and job.is_preempted:
        return ""
    return job.time_limit if job.is_out_of_time or (job.runs and is_announced) else None


def _limit_here(number: int) -> str | None:
    """The same of a job without SLURM."""
    seconds = int(os.environ.get("SUBMITIT_LOCAL_TIMEOUT_S", 0))
    return f"{seconds // 60} min" if number == QUEUE_SIGNAL else None


def _leave_it_to_rank_0() -> None:
    """Wait until the first rank has put the job back; were another one to end now, SLURM would fail the job.

    A first rank that was still being started has missed the signal, and waits for this one.
    """
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    time.sleep(_RANK_0_FIRST_S)
    _persistently(slurm.requeue_this_job, _PATIENCE_S)
    time.sleep(_PATIENCE_S)


def _persistently(act: Callable[[], Result], patience_s: float) -> Result | None:
    """What `act` returns, as soon as SLURM's controller answers; None if it does not, or refuses for good."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return act()
        except (slurm.NoAnswer, OSError, subprocess.SubprocessError) as error:
            print(f"vlmexp: The job cannot go back to its queue yet: {error}", file=sys.stderr, flush=True)
            if time.monotonic() > until:
                return None
            time.sleep(_PAUSE_S)
