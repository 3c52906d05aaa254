"""Processes of their own for what reads files that others made, with a limit for memory and time.

A damaged file can end the process that opens it, or keep it busy for ever; then it is this process that ends, and the
file is named. Processes are kept for the next file, one for each thread that reads at the same time.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, TypeVar

_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from {} import main; main()"
_BLOCK = 2**20  # bytes
_LINE = 2**20  # bytes an answer may have
_END_S = 5
_LONGEST_START_S = 60  # of Python and the library, which the time for a file does not count


class Failed(Exception):
    """What the process could not do, as the end of a sentence."""


class Refused(Failed):
    """What it says of the file; it is ready for another."""


class NoMemory(Failed):
    """It had too little for the file."""


class Slow(Failed):
    """It is busy with the file."""


class ChildProcess:
    """A process that is asked in lines of JSON and answers in them, with bytes behind.

    Attributes:
        reads: what it is asked to read.

    Args:
        module: whose `main` it runs, see `vlmexp.data.child`.
        environment: variables that it has beside those of this process.
    """

    reads = "file"

    def __init__(self, module: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(module), json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which says what becomes of the other
            env=os.environ | environment,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout.fileno()
        with contextlib.suppress(OSError):  # an administrator may allow less; the smaller one is slower
            fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, _BLOCK)
        self._deadline = 0.0
        self.is_new = True

    @property
    def is_alive(self) -> bool:
        """Whether the process can be asked."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # it hangs in the kernel, which lets go of it some time
            self._process.wait(_END_S)
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _give(self, seconds: float) -> float:
        """Let it have so many seconds from now on, and those of its start; returns how many that are."""
        seconds += _LONGEST_START_S if self.is_new else 0
        self._deadline, self.is_new = time.monotonic() + seconds, False
        return seconds

    def _ask(self, request: dict[str, Any]) -> None:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except OSError:
            self._gone()

    def _answer(self) -> dict[str, Any]:
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < _LINE:
            self._wait()
            line += os.read(self._answers, 1) or bytes(self._gone())
        answer: dict[str, Any] = json.loads(line)
        if "memory" in answer:
            raise NoMemory
        if "error" in answer:
            raise Refused(f"it is damaged or no {self.reads} ({answer['error']})")
        if "unreadable" in answer:
            raise Refused(answer["unreadable"])
        return answer

    def _read_into(self, rest: memoryview) -> None:
        """Fill a buffer with the bytes that come next."""
        while rest:
            self._wait()
            rest = rest[os.readv(self._answers, [rest[:_BLOCK]]) or self._gone() :]

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0 or not select.select([self._answers], [], [], left)[0]:
            raise Slow

    def _gone(self) -> int:
        """Raise what is known of the process's end."""
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise Failed(f"it is damaged in a way that ends the library's process ({name})")


P = TypeVar("P", bound=ChildProcess)


class Pool(Generic[P]):
    """Processes of one kind; those that have nothing to do are in `idle`."""

    def __init__(self, kind: Callable[[], P]) -> None:
        self._kind, self._lock = kind, threading.Lock()
        self.idle: list[P] = []
        os.register_at_fork(after_in_child=self._forget)
        atexit.register(self.end_idle)

    @contextlib.contextmanager
    def one(self, *survived: type[Exception]) -> Iterator[P]:
        """A process for the length of the block; after an exception that it may not have survived it is ended."""
        with self._lock:
            while self.idle and not self.idle[-1].is_alive:  # ended by somebody else, which says nothing of the next
                self.idle.pop().end()
            process = self.idle.pop() if self.idle else None
        process = process or self._kind()
        is_ready = False
        try:
            yield process
            is_ready = True
        except Exception as error:
            is_ready = isinstance(error, (Refused, *survived))
            raise
        finally:
            if is_ready:
                with self._lock:
                    self.idle.append(process)
            else:
                process.end()

    def end_idle(self) -> None:
        """End the processes that have nothing to do."""
        while self.idle:
            self.idle.pop().end()

    def _forget(self) -> None:
        """The processes of a process that was forked belong to the other one."""
        self._lock = threading.Lock()
        self.idle.clear()
