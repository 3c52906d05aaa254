"""The process that opens videos for another one: what a broken file does to it, it does to this process alone.

Requests and answers are lines of JSON, frames the bytes behind an answer:

    {"library", "path", "memory", "seconds"}   -> {"header": [frames, width, height, fps]}
    {"numbers": [0, 10], "seconds"}            -> {"shape": [2, height, width, 3]} and the frames, of the open video
    either                                     -> {"unreadable": why} | {"error": class} | {"memory": true}
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import IO, Any

import numpy as np

from vlmexp.data.video_readers import LIBRARIES, Reader, Unreadable

_SPARE_S = 5  # beyond the time that the other process waits
_STACK = 2**24  # bytes of address space that a library's thread may take and not use
_FRAME = 16  # bytes a pixel that a library may hold of a frame, in what form ever
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


class Child:
    """Answers requests until there are no more."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests, self._answers = requests, answers
        self._reader: Reader | None = None
        self._memory = self._base = 0

    def run(self) -> None:
        for line in self._requests:
            try:
                found, frames = self._answer(json.loads(line))
            except Unreadable as error:
                found, frames = {"unreadable": str(error)}, []
            except MemoryError:
                found, frames = {"memory": True}, []
            except Exception as error:  # each library has its own errors for a damaged file
                found, frames = {"error": type(error).__name__}, []
            self._answers.write(json.dumps(found).encode() + b"\n")
            for frame in frames:
                self._answers.write(np.ascontiguousarray(frame).data)
            self._answers.flush()
            signal.alarm(0)  # whoever waits for the next request has all the time there is

    def _answer(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        frames = list[Any]()
        signal.alarm(int(request["seconds"]) + _SPARE_S)  # ends this process, also within a library
        if "path" in request:
            self._reader = None
            LIBRARIES[request["library"]].loads()
            self._limit(request["memory"])
            self._reader = LIBRARIES[request["library"]].reader(Path(request["path"]))
            header = self._reader.header
            found: dict[str, Any] = {"header": [header.frames, header.width, header.height, header.fps]}
        else:
            assert self._reader is not None
            frames = self._reader.frames(request["numbers"])
            found = {"shape": [len(frames), *frames[0].shape]}
        # Some libraries leave a frame out where there is no memory for it and tell nobody.
        header = self._reader.header
        if _in_use("VmHWM") - self._base + _FRAME * header.width * header.height > self._memory:
            raise MemoryError
        return found, frames

    def _limit(self, memory: int) -> None:
        """Let this process have so many bytes more than it has now."""
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # so that VmHWM is the most from here on
        threads = min(os.cpu_count() or 1, 16)
        self._memory, self._base = memory, _in_use("VmRSS")
        limit = _in_use("VmData") + memory + threads * _STACK
        resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))


def _in_use(name: str) -> int:
    """Bytes of this process, by their name in /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def main() -> None:
    """Answer on what is now the standard output, on which libraries shall not print."""
    for number in _IGNORED:  # the other process decides when this one ends, and is told first
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb", buffering=2**20)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    Child(sys.stdin.buffer, answers).run()
