"""Images and videos of examples as the processor takes them, and their sizes without decoding."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import Image
from transformers.video_utils import VideoMetadata

from vlmexp.data.example import Example
from vlmexp.data.images import ImageOptions, MediaError, final_size, image_size, load_image, resized
from vlmexp.data.marks import numbers_of
from vlmexp.data.video_readers import VideoHeader
from vlmexp.data.videos import Clip, VideoOptions, frame_numbers, load_video, video_header

T = TypeVar("T")
_NEAR = 0.9  # of the most pixels; what is scaled down to them has about as many


@dataclass(frozen=True)
class ClipShape:
    """Size of a video's frames as the processor gets them, their numbers in the video, and its frames a second."""

    height: int
    width: int
    numbers: tuple[int, ...]
    fps: float


Shape = tuple[tuple[int, int] | ClipShape, ...]  # (width, height) of each image, then the videos


@dataclass(frozen=True)
class MediaOptions:
    """How media are decoded, and in which order they are shown.

    Attributes:
        image: of images; the size is that of a video's frames, too.
        by_marks: marks in a question tell the order of its media.
    """

    image: ImageOptions = field(default_factory=ImageOptions)
    video: VideoOptions = field(default_factory=VideoOptions)
    by_marks: bool = False


def is_scaled_down(example: Example, shape: Shape, options: MediaOptions) -> bool:
    """Whether an image of an example of this shape has more pixels than may reach the processor."""
    most = options.image.max_pixels
    is_near = any(not isinstance(size, ClipShape) and math.prod(size) > _NEAR * most for size in shape)
    return is_near and any(math.prod(image_size(path)) > most for path in shown_media(example, options)[0])


def shown_media(example: Example, options: MediaOptions) -> tuple[list[Path], list[Path]]:
    """The images and the videos of an example, each in the order of their places in the prompt."""
    parts = tuple(part for turn in example.turns for part in turn.parts) if example.turns else ()
    parts = example.question_parts if options.by_marks and not parts else parts
    if not parts or (len(parts) == 1 and parts[0][0] == "text"):
        return list(example.images), list(example.videos)
    images, videos = (numbers_of(parts, kind) for kind in ("image", "video"))
    return (
        [example.images[number - 1] for number in images] or list(example.images),
        [example.videos[number - 1] for number in videos] or list(example.videos),
    )


def media_key(example: Example, options: MediaOptions | None = None) -> tuple[str, ...]:
    """Equal for examples with the same media at the same size; empty without any.

    Args:
        options: if given, it is equal only where the media are shown in the same order.
    """
    limit = () if example.media_limit is None else (f"at most {example.media_limit} pixels",)
    images, videos = shown_media(example, options) if options else (example.images, example.videos)
    paths = (*videos, *images)
    return (*map(str, paths), *limit) if paths else ()


def media_arguments(examples: Sequence[Example], options: MediaOptions) -> dict[str, Any]:
    """The media arguments of a processor for these examples.

    Videos are lists of frames that are chosen already, so their metadata go along and no processor may choose again.

    Raises:
        MediaError: a file cannot be used; the message names the split, the row and the column.
    """
    own = [limited(options, example.media_limit) for example in examples]
    rows = list(zip(examples, own, strict=True))
    shown = [shown_media(e, o) for e, o in rows]
    images = [
        [_named(load_image, path, o.image, e, "image") for path in paths]
        for (e, o), (paths, _) in zip(rows, shown, strict=True)
    ]
    clips = [
        [_named(_clip, path, o, e, "video") for path in paths] for (e, o), (_, paths) in zip(rows, shown, strict=True)
    ]
    return _arguments([row for row in images if row], [row for row in clips if row])


def media_shape(example: Example, options: MediaOptions, known: Mapping[str, tuple[int, int]] | None = None) -> Shape:
    """Sizes of an example's media as the processor will get them, from the files' headers.

    Args:
        known: image -> width and height, upright, of files that are not to be opened.
    """
    options = limited(options, example.media_limit)
    images, videos = shown_media(example, options)
    sizes = [
        final_size(size, options.image)
        if known and (size := known.get(str(path)))
        else _named(image_size, path, options.image, example, "image")
        for path in images
    ]
    return (*sizes, *(_named(_clip_shape, path, options, example, "video") for path in videos))


def blank_arguments(shape: Shape) -> dict[str, Any]:
    """The media arguments of a processor for one example with black media of these sizes."""
    images = [Image.new("RGB", size) for size in shape if not isinstance(size, ClipShape)]
    clips = [_blank(size) for size in shape if isinstance(size, ClipShape)]
    return _arguments([images] if images else [], [clips] if clips else [])


def limited(options: MediaOptions, limit: int | None) -> MediaOptions:
    """The options for media whose longest side may have at most `limit` pixels."""
    if limit is None:
        return options
    image = options.image
    if image.max_size is None:  # without it the mode says nothing
        return dataclasses.replace(options, image=dataclasses.replace(image, resize_mode="keep_aspect", max_size=limit))
    return dataclasses.replace(options, image=dataclasses.replace(image, max_size=min(limit, image.max_size)))


def _blank(shape: ClipShape) -> Clip:
    pixels = np.zeros((len(shape.numbers), shape.height, shape.width, 3), np.uint8)
    header = VideoHeader(shape.numbers[-1] + 1, shape.width, shape.height, shape.fps)
    return Clip(pixels, list(shape.numbers), header, "none")


def _arguments(images: list[list[Image.Image]], clips: list[list[Clip]]) -> dict[str, Any]:
    arguments: dict[str, Any] = {}
    if images:
        arguments["images"] = images
    if clips:
        arguments["videos"] = [[clip.frames for clip in row] for row in clips]
        arguments["videos_kwargs"] = {
            "video_metadata": [[_metadata(clip) for clip in row] for row in clips],
            "do_sample_frames": False,
        }
    return arguments


def _clip(path: Path, options: MediaOptions) -> Clip:
    clip = load_video(path, options.video)
    height, width = clip.frames.shape[1:3]
    if final_size((width, height), options.image) == (width, height):
        return clip
    frames = [np.asarray(resized(Image.fromarray(frame), options.image)) for frame in clip.frames]
    return dataclasses.replace(clip, frames=np.stack(frames))


def _clip_shape(path: Path, options: MediaOptions) -> ClipShape:
    header = video_header(path, options.video)
    width, height = final_size((header.width, header.height), options.image)
    return ClipShape(height, width, tuple(frame_numbers(header, options.video)), header.fps)


def _metadata(clip: Clip) -> VideoMetadata:
    header = clip.header
    return VideoMetadata(
        total_num_frames=header.frames,
        fps=header.fps or None,
        width=header.width,
        height=header.height,
        duration=header.frames / header.fps if header.fps else None,
        video_backend=clip.library,
        frames_indices=clip.numbers,
    )


def _named(read: Callable[[Path, Any], T], path: Path, options: Any, example: Example, role: str) -> T:
    try:
        return read(path, options)
    except MediaError as error:
        raise MediaError(error.reason, f"{example.place(role)}: {error}") from None
