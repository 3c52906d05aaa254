"""Videos read in processes of their own, with a limit for memory and time.

A damaged file can end the process that opens it, or keep it busy for ever; then it is this process that ends, and the
file is named. Processes are kept for the next video, one for each thread that reads at the same time.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vlmexp.data.image_files import MediaError, open_media
from vlmexp.data.limits import MIB, budget
from vlmexp.data.video_containers import DEMUXERS, HEAD, NAMES, is_container
from vlmexp.data.video_readers import Pixels, VideoHeader

T = TypeVar("T")
_START = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from vlmexp.data.video_child import main; main()"
_BLOCK = 2**20  # bytes
_LINE = 2**20  # bytes an answer may have
_LONGEST_START_S = 60  # of Python and the library, which the time for a video does not count


class _Failed(Exception):
    """What the process could not do, as the end of a sentence."""


class _Refused(_Failed):
    """What it says of the file; it is ready for another."""


class _NoMemory(_Failed):
    """It had too little for the file."""


class _Slow(_Failed):
    """It is busy with the file."""


class ReaderProcess:
    """A process that opens videos; it has one open at a time."""

    header: VideoHeader

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for this process, which says what becomes of the other
            env=os.environ | {"OPENCV_FFMPEG_CAPTURE_OPTIONS": f"format_whitelist;{DEMUXERS}|protocol_whitelist;file"},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout.fileno()
        self._deadline = 0.0
        self.is_new = True

    def open(self, path: Path, library: str, memory: int) -> None:
        """Open a video; its process may take so many bytes."""
        seconds = budget.limits.decode_timeout_s + (_LONGEST_START_S if self.is_new else 0)
        self._deadline, self.is_new = time.monotonic() + seconds, False
        request = {"library": library, "path": str(path), "memory": memory, "seconds": seconds}
        self.header = VideoHeader(*self._asked(request)["header"])

    def frames(self, numbers: Sequence[int]) -> Pixels:
        """Frames [frames, height, width, 3] of the given ascending numbers, as `Reader.frames`."""
        left = max(0.0, self._deadline - time.monotonic())
        shape = self._asked({"numbers": list(map(int, numbers)), "seconds": left})["shape"]
        frames: Pixels = np.empty(shape, np.uint8)
        rest = memoryview(frames.reshape(-1))  # type: ignore[arg-type]
        while rest:
            self._wait()
            rest = rest[os.readv(self._answers, [rest[:_BLOCK]]) or self._gone() :]
        return frames

    @property
    def is_alive(self) -> bool:
        """Whether the process can be asked."""
        return self._process.poll() is None

    def end(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()  # type: ignore[union-attr]

    def _asked(self, request: dict[str, Any]) -> dict[str, Any]:
        try:
            self._requests.write(json.dumps(request).encode() + b"\n")
            self._requests.flush()
        except OSError:
            self._gone()
        line = bytearray()
        while not line.endswith(b"\n") and len(line) < _LINE:
            self._wait()
            line += os.read(self._answers, 1) or bytes(self._gone())
        answer: dict[str, Any] = json.loads(line)
        if "memory" in answer:
            raise _NoMemory
        if "error" in answer:
            raise _Refused(f"it is damaged or no video ({answer['error']})")
        if "unreadable" in answer:
            raise _Refused(answer["unreadable"])
        return answer

    def _wait(self) -> None:
        left = self._deadline - time.monotonic()
        if left <= 0 or not select.select([self._answers], [], [], left)[0]:
            raise _Slow

    def _gone(self) -> int:
        """Raise what is known of the process's end."""
        code = self._process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        raise _Failed(f"it is damaged in a way that ends the library's process ({name})")


_idle: list[ReaderProcess] = []
_lock = threading.Lock()


def _forget() -> None:
    """The processes of a process that was forked belong to the other one."""
    global _lock
    _lock = threading.Lock()
    _idle.clear()


def _end_idle() -> None:
    while _idle:
        _idle.pop().end()


os.register_at_fork(after_in_child=_forget)
atexit.register(_end_idle)


@contextlib.contextmanager
def _reader() -> Iterator[ReaderProcess]:
    """A process to open a video with; after an error that it may not have survived it is ended."""
    with _lock:
        while _idle and not _idle[-1].is_alive:  # ended by somebody else, which says nothing of the next video
            _idle.pop().end()
        process = _idle.pop() if _idle else None
    process = process or ReaderProcess()
    is_ready = False
    try:
        yield process
        is_ready = True
    except (_Refused, MediaError):
        is_ready = True
        raise
    finally:
        if is_ready:
            with _lock:
                _idle.append(process)
        else:
            process.end()


def read_video(path: Path, library: str, use: Callable[[ReaderProcess], T]) -> T:
    """What `use` makes of an open video.

    Most videos need little memory, so several are read at once, each with a part of the budget; one for which that is
    not enough is read again with all of it.

    Raises:
        MediaError: the file is missing, damaged or no video, or needs more memory or time than there is.
    """
    with open_media("video", path) as file:
        if not is_container(file.read(HEAD)):
            raise MediaError(
                "damaged",
                f"The video {path} cannot be read with {library}: it is damaged or no video (it does not begin as an "
                f"{NAMES} file does).",
            )
    for memory in (budget.size // 4, budget.size):
        try:
            with budget.taken(memory), _reader() as process:
                process.open(path, library, memory)
                return use(process)
        except _Slow:
            limit = budget.limits.decode_timeout_s
            raise MediaError(
                "too slow",
                f"The video {path} takes longer to read with {library} than dataset.decode_timeout_s={limit:g}: "
                "shorten it, or raise that limit.",
            ) from None
        except _NoMemory:
            limit = budget.limits.decode_memory_mib
            failed = MediaError(
                "too large",
                f"The video {path} needs more memory to be read with {library} than "
                f"dataset.decode_memory_mib={limit}: shrink it, or raise that limit.",
            )
        except _Failed as error:
            failed = MediaError("damaged", f"The video {path} cannot be read with {library}: {error}.")
    raise failed


def require_room(path: Path, header: VideoHeader, count: int) -> None:
    """Raise a MediaError if so many frames of a video are more than may be decoded at once."""
    size = 3 * count * header.width * header.height
    if size > budget.size:
        raise MediaError(
            "too large",
            f"The video {path} shows {count:,} frames of {header.width:,} x {header.height:,}, which are "
            f"{size / MIB:,.0f} MiB, more than dataset.decode_memory_mib={budget.limits.decode_memory_mib}: take fewer "
            "frames, or raise that limit.",
        )
