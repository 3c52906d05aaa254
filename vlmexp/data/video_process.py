"""Videos read in processes of their own, with a limit for memory and time."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from vlmexp.data.child_process import ChildProcess, Failed, NoMemory, Pool, Slow
from vlmexp.data.image_files import MediaError, open_media
from vlmexp.data.limits import MIB, Share, budget
from vlmexp.data.video_containers import DEMUXERS, HEAD, NAMES, bytes_behind_avi, is_container
from vlmexp.data.video_readers import Pixels, VideoHeader

T = TypeVar("T")

_MOST_BEHIND = 64 * MIB  # of an avi, which every opening would look through


class ReaderProcess(ChildProcess):
    """A process that opens videos; it has one open at a time."""

    header: VideoHeader
    reads = "video"

    def __init__(self) -> None:
        options = f"format_whitelist;{DEMUXERS}|protocol_whitelist;file"
        super().__init__("vlmexp.data.video_child", {"OPENCV_FFMPEG_CAPTURE_OPTIONS": options})
        self._share: Share | None = None

    def open(self, path: Path, library: str, share: Share, seconds: float) -> None:
        """Open a video. It and its frames may take the bytes of a share, and all that is asked of it so much time."""
        self._share = share
        seconds = self._give(seconds)
        self._ask({"library": library, "path": str(path), "memory": share.size, "seconds": seconds})
        self.header = VideoHeader(*self._answer()["header"])

    def frames(self, numbers: Sequence[int]) -> Pixels:
        """Frames [frames, height, width, 3] of the given ascending numbers, as `Reader.frames`."""
        size = len(numbers) * 3 * self.header.width * self.header.height
        self._ask_for(numbers, {"memory": self._left_beside(size)})
        frames: Pixels = np.empty(0, np.uint8)
        for number in range(len(numbers)):
            shape = self._answer()["shape"]
            if number == 0:
                if len(numbers) * math.prod(shape) > size:
                    raise Failed("its frames are larger than its header says")
                frames = np.empty((len(numbers), *shape), np.uint8)
            self._read_into(memoryview(frames[number].reshape(-1)))  # type: ignore[arg-type]
        return frames

    def check(self, numbers: Sequence[int]) -> None:
        """Decode frames of the given ascending numbers, and leave them where they are."""
        self._ask_for(numbers, {"is_check": True})
        for _ in numbers:
            self._answer()

    def _ask_for(self, numbers: Sequence[int], how: dict[str, Any]) -> None:
        left = max(0.0, self._deadline - time.monotonic())
        self._ask({"numbers": list(map(int, numbers)), "seconds": left} | how)

    def _left_beside(self, size: int) -> int:
        """Bytes that the process may take while this one takes so many for frames."""
        assert self._share is not None
        before = self._share.size
        if self._share.grown(size):
            return before
        if size >= before:
            raise NoMemory
        return before - size


_pool = Pool(ReaderProcess)
_idle, _end_idle = _pool.idle, _pool.end_idle


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
        if (behind := bytes_behind_avi(file)) > _MOST_BEHIND:
            raise MediaError(
                "damaged",
                f"The video {path} cannot be read with {library}: {behind / MIB:,.0f} MiB lie behind the end of its "
                "avi: write it anew without them (ffmpeg -i OLD.avi -c copy NEW.avi).",
            )
    left = budget.limits.decode_timeout_s
    for memory in (budget.size // 4, budget.size):
        try:
            with budget.taken(memory) as share, _pool.one(MediaError) as process:
                begun = time.monotonic()  # not counted is the wait for others
                process.open(path, library, share, left)
                return use(process)
        except Slow:
            limit = budget.limits.decode_timeout_s
            raise MediaError(
                "too slow",
                f"The video {path} takes longer to read with {library} than dataset.decode_timeout_s={limit:g}: "
                "shorten it, or raise that limit.",
            ) from None
        except NoMemory:
            left = max(1.0, left - (time.monotonic() - begun))
            limit = budget.limits.decode_memory_mib
            failed = MediaError(
                "too large",
                f"The video {path} needs more memory to be read with {library} than "
                f"dataset.decode_memory_mib={limit}: shrink it, or raise that limit.",
            )
        except Failed as error:
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
