"""What the processes that read files for another one have in common: their end of `vlmexp.data.child_process`."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from pathlib import Path
from typing import IO

SPARE_S = 5  # beyond the time that the other process waits
_STACK = 2**24  # bytes of address space that a library's thread may take and not use
_first: dict[str, int] = {}  # bytes that this process had before its first file
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)


def pipes() -> tuple[IO[bytes], IO[bytes]]:
    """Where requests come from, and where answers go: what is now the standard output, on which nobody else prints."""
    for number in _IGNORED:  # the other process decides when this one ends, and is told first
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers = os.fdopen(os.dup(1), "wb", buffering=2**20)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return sys.stdin.buffer, answers


def limit_memory(memory: int) -> int:
    """Let this process have so many bytes more than it had the first time; returns how many those were.

    What a library has leaked since then counts: a process that has too little for the next file is ended for another.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # so that VmHWM is the most from here on
    threads = min(os.cpu_count() or 1, 16)
    for name in ("VmData", "VmRSS"):
        _first.setdefault(name, in_use(name))
    limit = _first["VmData"] + memory + threads * _STACK
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    return _first["VmRSS"]


def lower_limit(by: int) -> None:
    """Let this process have so many bytes less than it was allowed."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit != resource.RLIM_INFINITY:
        resource.setrlimit(resource.RLIMIT_DATA, (max(0, limit - by), resource.RLIM_INFINITY))


def in_use(name: str) -> int:
    """Bytes of this process, by their name in /proc."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
