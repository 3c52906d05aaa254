"""The process that opens videos for another one: what a broken file does to it, it does to this process alone.

Requests and answers are lines of JSON, a frame the bytes behind an answer:

    {"library", "path", "memory", "seconds"}   -> {"header": [frames, width, height, fps]}
    {"numbers": [0, 10], "memory", "seconds"}  -> {"shape": [height, width, 3]} and a frame, for each, of the open video
    {"numbers", "is_check": true, "seconds"}   -> the same without the frames
    any                                        -> {"unreadable": why} | {"error": class} | {"memory": true}
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from vlmexp.data.child import SPARE_S, in_use, limit_memory, lower_limit, pipes
from vlmexp.data.video_readers import LIBRARIES, Pixels, Reader, Unreadable

_FRAME = 16  # bytes a pixel that a library may hold of a frame, in what form ever


class Child:
    """Answers requests until there are no more."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests, self._answers = requests, answers
        self._reader: Reader | None = None
        self._memory = self._base = 0

    def run(self) -> None:
        for line in self._requests:
            try:
                for found, frame in self._answer(json.loads(line)):
                    self._send(found, frame)
            except Unreadable as error:
                self._send({"unreadable": str(error)})
            except MemoryError:
                self._send({"memory": True})
            except Exception as error:  # each library has its own errors for a damaged file
                self._send({"error": type(error).__name__})
            self._answers.flush()
            signal.alarm(0)  # whoever waits for the next request has all the time there is

    def _send(self, found: dict[str, Any], frame: Pixels | None = None) -> None:
        self._answers.write(json.dumps(found).encode() + b"\n")
        if frame is not None:
            self._answers.write(np.ascontiguousarray(frame).data)

    def _answer(self, request: dict[str, Any]) -> Iterator[tuple[dict[str, Any], Pixels | None]]:
        signal.alarm(int(request["seconds"]) + SPARE_S)  # ends this process, also within a library
        if "path" in request:
            self._reader = None
            LIBRARIES[request["library"]].loads()
            self._limit(request["memory"])
            self._reader = LIBRARIES[request["library"]].reader(Path(request["path"]))
            self._require_memory()
            header = self._reader.header
            yield {"header": [header.frames, header.width, header.height, header.fps]}, None
            return
        assert self._reader is not None
        lower_limit(self._memory - request.get("memory", self._memory))
        self._memory = request.get("memory", self._memory)
        first: tuple[int, ...] | None = None
        for frame in self._reader.frames(request["numbers"]):
            first = first or frame.shape
            if frame.shape != first:
                raise Unreadable(f"its frames are of several sizes, {_size(first)} and {_size(frame.shape)}")
            self._require_memory()
            yield {"shape": list(frame.shape)}, None if "is_check" in request else frame

    def _require_memory(self) -> None:
        """Some libraries leave a frame out where there is no memory for it and tell nobody."""
        assert self._reader is not None
        header = self._reader.header
        if in_use("VmHWM") - self._base + _FRAME * header.width * header.height > self._memory:
            raise MemoryError

    def _limit(self, memory: int) -> None:
        self._memory, self._base = memory, limit_memory(memory)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[1]:,} x {shape[0]:,}"


def main() -> None:
    """Open videos for another process."""
    Child(*pipes()).run()
