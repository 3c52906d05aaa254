"""Videos: which frames are taken from a file, and their pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmexp.data.image_files import MediaError
from vlmexp.data.video_process import ReaderProcess, read_video, require_room
from vlmexp.data.video_readers import Pixels, VideoHeader, resolve_library


@dataclass(frozen=True)
class VideoOptions:
    """Which frames of a video are shown.

    Attributes:
        library: pyav, torchcodec, decord or cv2; `auto`: the first of these that is installed.
        sampling_strategy: `uniform` takes `num_frames` frames at even distances, the first and the last among them, or
            all if there are fewer; `fps` takes `fps` frames a second from the first on, however many that are.
        convert_to_rgb: without it frames of cv2 stay BGR; the other libraries give RGB either way.
        max_duration: seconds; only so much of a video's beginning is looked at. None: all of it.
    """

    library: str = "auto"
    sampling_strategy: str = "uniform"
    num_frames: int = 8
    fps: float = 1.0
    convert_to_rgb: bool = True
    max_duration: float | None = None


@dataclass(frozen=True)
class Clip:
    """Frames [frames, height, width, 3] of a video, their numbers in it, and what its header says."""

    frames: Pixels
    numbers: list[int]
    header: VideoHeader
    library: str


def video_header(path: Path, options: VideoOptions) -> VideoHeader:
    """Number, size and rate of a video's frames.

    Raises:
        MediaError: the file is missing, damaged, cut off, or has no frame.
    """
    return read_video(path, resolve_library(options.library), lambda video: _header(path, video))


def frame_numbers(header: VideoHeader, options: VideoOptions) -> list[int]:
    """The ascending numbers of the frames to show.

    >>> frame_numbers(VideoHeader(250, 640, 272, 25.0), VideoOptions(num_frames=4))
    [0, 83, 166, 249]
    >>> frame_numbers(VideoHeader(250, 640, 272, 25.0), VideoOptions(sampling_strategy="fps", fps=0.5))
    [0, 50, 100, 150, 200]
    """
    count = header.frames
    if options.max_duration is not None and header.fps > 0:
        count = max(1, min(count, int(options.max_duration * header.fps)))
    if options.sampling_strategy == "fps":
        step = max(1.0, header.fps / options.fps)
        return [int(k * step) for k in range(int((count - 1) / step) + 1)]
    return [int(x) for x in np.linspace(0, count - 1, min(options.num_frames, count)).round()]


def load_video(path: Path, options: VideoOptions) -> Clip:
    """Decode the frames to show.

    Raises:
        MediaError: the file is missing, damaged, cut off, or has no frame.
    """
    library = resolve_library(options.library)

    def clip(video: ReaderProcess) -> Clip:
        header = _header(path, video)
        numbers = frame_numbers(header, options)
        require_room(path, header, len(numbers))
        return Clip(video.frames(numbers), numbers, header, library)

    found = read_video(path, library, clip)
    for frame in found.frames if library == "cv2" and options.convert_to_rgb else ():
        frame[:] = frame[..., ::-1].copy()  # in place: a clip may be large
    return found


def check_video(path: Path, library: str) -> None:
    """Decode the first, a middle and the last frame.

    Raises:
        MediaError: the file is missing, damaged, cut off, has no frame, or needs more memory or time than there is.
    """

    def check(video: ReaderProcess) -> None:
        header = _header(path, video)
        video.check(sorted({0, header.frames // 2, header.frames - 1}))

    read_video(path, resolve_library(library), check)


def _header(path: Path, video: ReaderProcess) -> VideoHeader:
    if video.header.frames < 1:
        raise MediaError("no frames", f"The video {path} has no frame.")
    return video.header
