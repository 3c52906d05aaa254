"""Video libraries behind one interface: the number, size and rate of a file's frames, and any of its frames.

All give the same frames for the same numbers, counted from 0 in the order in which they are shown, for mp4, mov, mkv,
webm and avi files. (OpenCV is wrong about the number of frames of MPEG program streams.)
"""

from __future__ import annotations

import importlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vlmexp.data.video_containers import DEMUXERS
from vlmexp.errors import UserError, unknown

Pixels = NDArray[np.uint8]
_AT_ONCE = 2**26  # bytes of frames that are decoded together where a library can
_SLACK = 0.25  # seconds by which a whole file may end before what its header says


@dataclass(frozen=True)
class VideoHeader:
    """What a file says of its frames; width and height in pixels as they are shown, `fps` on average."""

    frames: int
    width: int
    height: int
    fps: float


class Unreadable(Exception):
    """What is wrong with a video, as the end of a sentence; the libraries' own errors are another matter."""


class Reader(Protocol):
    """An open video."""

    header: VideoHeader

    def frames(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        """Frames [height, width, 3] of the given ascending numbers; RGB, but for OpenCV, which gives BGR."""
        ...


class PyavReader:
    """PyAV. Finds a frame by its time stamp: it seeks to the key frame before it and decodes from there.

    Where the container has no time stamps of its own (h264 in avi), it decodes from the beginning and counts.
    """

    def __init__(self, path: Path) -> None:
        import av

        self._container = av.open(str(path), options={"format_whitelist": DEMUXERS, "protocol_whitelist": "file"})
        if not self._container.streams.video:
            raise Unreadable("it has no video stream")
        self._stream = self._container.streams.video[0]
        stamps: list[tuple[int, int]] = []  # (time of showing, time of decoding) of every frame
        keys: list[tuple[int, int]] = []  # the same of every key frame
        durations: dict[int, int] = {}  # of the frame that is shown at a time
        packets, end = 0, 0.0
        for packet in self._container.demux():
            if packet.pts is not None:
                end = max(end, float((packet.pts + (packet.duration or 0)) * (packet.time_base or 0)))
            if packet.stream is not self._stream:
                continue
            packets += packet.size > 0
            if packet.pts is not None and not packet.is_discard:
                times = (packet.pts, packet.pts if packet.dts is None else packet.dts)
                stamps.append(times)
                durations[packet.pts] = packet.duration or 0
                if packet.is_keyframe:
                    keys.append(times)
        if packets < self._stream.frames:
            raise Unreadable(f"it is cut off, with {packets} of its {self._stream.frames} frames")
        whole = (self._container.duration or 0) / 1_000_000  # seconds, of the longest stream
        if whole - end > max(_SLACK, whole / 10):
            raise Unreadable(f"it is cut off, with {end:.2f} of its {whole:.2f} seconds")
        delays = {shown - decoded for shown, decoded in stamps}
        self._in_order = not (self._stream.codec_context.has_b_frames and len(delays) == 1)
        self._stamps, self._keys = sorted(shown for shown, _ in stamps), sorted(keys)
        self._decoded: Iterator[Any] = iter(())
        self._position: int | None = None  # time stamp of the frame that was decoded last
        height, width = next(self._first([0])).shape[:2] if stamps else (0, 0)
        first, last = (self._stamps[0], self._stamps[-1]) if stamps else (0, 0)
        seconds = float((last + durations.get(last, 0) - first) * (self._stream.time_base or 0))
        rate = _average_rate(float(self._stream.average_rate or 0), len(stamps), seconds)
        self.header = VideoHeader(len(stamps), width, height, rate)

    def frames(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        if self._in_order:
            return (self._frame_at(self._stamps[number]) for number in numbers)
        return self._first(numbers)

    def _frame_at(self, stamp: int) -> Pixels:
        key, key_decoded = self._keys[max(0, bisect_right(self._keys, stamp, key=lambda times: times[0]) - 1)]
        if self._position is None or self._position >= stamp or self._position < key:
            self._container.seek(key_decoded, stream=self._stream)  # it seeks by the time of decoding
            self._decoded = iter(self._container.decode(self._stream))
        for frame in self._decoded:
            self._position = frame.pts
            if frame.pts == stamp:
                return _upright(frame)
        raise Unreadable("a frame of it cannot be decoded")

    def _first(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        """Frames of these numbers, by counting from the beginning."""
        self._container.seek(0, stream=self._stream)
        self._position = None
        wanted, decoded = set(numbers), 0
        for frame in itertools.islice(self._container.decode(self._stream), numbers[-1] + 1):
            if decoded in wanted:
                yield _upright(frame)
            decoded += 1
        if decoded <= numbers[-1]:
            raise Unreadable(f"only {decoded} frames of it can be decoded")


def _average_rate(stated: float, frames: int, seconds: float) -> float:
    """Frames a second: what the header says, unless that is off by more than a frame.

    Where frames follow each other at different times, some files state the rate of the closest two.
    """
    return frames / seconds if seconds > 0 and abs(stated * seconds - frames) > 1.5 else stated


def _upright(frame: Any) -> Pixels:
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90))


class DecordReader:
    """decord."""

    def __init__(self, path: Path) -> None:
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        self._reader = decord.VideoReader(str(path), num_threads=1)
        height, width = self._reader[0].shape[:2] if len(self._reader) else (0, 0)
        count, stated = len(self._reader), float(self._reader.get_avg_fps())
        begin, end = (self._reader.get_frame_timestamp(n)[k] for n, k in ((0, 0), (-1, 1))) if count else (0.0, 0.0)
        self.header = VideoHeader(count, width, height, _average_rate(stated, count, float(end - begin)))

    def frames(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        at_once = max(1, _AT_ONCE // max(1, 3 * self.header.width * self.header.height))
        for start in range(0, len(numbers), at_once):
            yield from self._reader.get_batch(list(numbers[start : start + at_once])).asnumpy()


class OpencvReader:
    """OpenCV."""

    def __init__(self, path: Path) -> None:
        import cv2

        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._cv2: Any = cv2
        self._capture = self._opened(path)
        width, height = (int(self._capture.get(p)) for p in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
        self.header = VideoHeader(self._count(), width, height, float(self._capture.get(cv2.CAP_PROP_FPS)))
        self._capture = self._opened(path)  # a capture that has seen the end does not always come back from it
        self._next = 0  # number of the frame that is read next

    def frames(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        for number in numbers:
            if number != self._next:
                self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, number)
            there, picture = self._capture.read()
            if not there:
                raise Unreadable(f"its frame {number} cannot be decoded")
            self._next = number + 1
            yield picture

    def _opened(self, path: Path) -> Any:
        capture = self._cv2.VideoCapture(str(path), self._cv2.CAP_FFMPEG)  # another would take % for a number
        if not capture.isOpened():
            raise Unreadable("it is damaged or no video")
        return capture

    def _count(self) -> int:
        """The header's number of frames if the last of them is there; else they are counted."""
        stated = int(self._capture.get(self._cv2.CAP_PROP_FRAME_COUNT))
        if stated > 0:
            self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, stated - 1)
            if self._capture.grab() and not self._capture.grab():
                return stated
        self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, 0)
        counted = 0
        while self._capture.grab():
            counted += 1
        if counted < stated - 1:  # where the header has only the duration, it may be one too many
            raise Unreadable(
                f"it has {counted} of the {stated} frames that its duration makes, so it is cut off, or its frames are "
                "at uneven times, which cv2 cannot read"
            )
        return counted


class TorchcodecReader:
    """torchcodec, which needs FFmpeg's libraries on the system and cannot find every frame of h264 in avi files."""

    def __init__(self, path: Path) -> None:
        from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined]

        self._decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        about = self._decoder.metadata
        self.header = VideoHeader(
            len(self._decoder), int(about.width or 0), int(about.height or 0), float(about.average_fps or 0)
        )

    def frames(self, numbers: Sequence[int]) -> Iterator[Pixels]:
        at_once = max(1, _AT_ONCE // max(1, 3 * self.header.width * self.header.height))
        for start in range(0, len(numbers), at_once):
            yield from self._decoder.get_frames_at(list(numbers[start : start + at_once])).data.numpy()


def torchcodec_loads() -> bool:
    """Whether torchcodec finds the FFmpeg libraries that it needs, which it looks for at the first video only."""
    from torchcodec.decoders import VideoDecoder  # type: ignore[attr-defined]

    try:
        VideoDecoder(b"no video")
    except Exception as error:
        return "Could not load libtorchcodec" not in str(error)
    return True


@dataclass(frozen=True)
class Library:
    """A reader, the module that it needs and the package that has it."""

    reader: Callable[[Path], Reader]
    module: str
    package: str
    loads: Callable[[], bool] = lambda: True  # whether it works, for one that can be imported without working


# In the order in which `auto` looks for them: PyAV reads most formats and needs nothing else; torchcodec is as fast.
LIBRARIES = {
    "pyav": Library(PyavReader, "av", "av"),
    "torchcodec": Library(TorchcodecReader, "torchcodec.decoders", "torchcodec and FFmpeg", torchcodec_loads),
    "decord": Library(DecordReader, "decord", "decord"),
    "cv2": Library(OpencvReader, "cv2", "opencv-python-headless"),
}


@cache
def works(name: str) -> bool:
    """Whether the library is installed here and what it needs is too."""
    library = LIBRARIES[name]
    try:
        importlib.import_module(library.module)
    except (ImportError, OSError, RuntimeError):  # of shared libraries that are not there
        return False
    return library.loads()


def resolve_library(name: str) -> str:
    """The library to use: the one asked for, or with `auto` the first that works here.

    Raises:
        UserError: unknown, or not installed.
    """
    option = f"collator.video_processing.frame_extraction.library={name}"
    if name == "auto":
        found = next(filter(works, LIBRARIES), None)
        if found is None:
            raise UserError(f"{option}: no video library is installed here: pip install av.")
        return found
    if name not in LIBRARIES:
        raise unknown("video library", name, ["auto", *LIBRARIES])
    if not works(name):
        here = ", ".join(filter(works, LIBRARIES)) or "none"
        raise UserError(f"{option} does not load here: it needs {LIBRARIES[name].package}. Those that do: {here}.")
    return name
