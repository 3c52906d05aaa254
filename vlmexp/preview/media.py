"""The media of an example as the model sees them, and what became of the files on the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from PIL import Image

from vlmexp.collator.batch import Collator
from vlmexp.collator.media import MediaOptions, limited, shown_media
from vlmexp.data.example import Example
from vlmexp.data.images import final_size, image_size, load_image, resized
from vlmexp.data.videos import frame_numbers, load_video, video_header
from vlmexp.preview.pictures import seen_pictures


@dataclass(frozen=True)
class Medium:
    """An image or a video as the model sees it: pictures with a caption each, and their way there in words."""

    title: str
    about: str
    pictures: list[tuple[Image.Image, str]]


@dataclass(frozen=True)
class _File:
    path: Path
    options: MediaOptions
    resized_by: str  # option
    is_video: bool

    @property
    def title(self) -> str:
        return f"{'video' if self.is_video else 'image'} {self.path.name}"

    def way(self) -> str:
        """The sizes that it has in the file and before the processor."""
        if not self.is_video:
            size = image_size(self.path)
            text = f"{in_pixels(size)} in the file"
        else:
            header = video_header(self.path, self.options.video)
            size = (header.width, header.height)
            rate = f" at {header.fps:.4g} a second" if header.fps else ""
            taken = len(frame_numbers(header, self.options.video))
            text = f"{in_pixels(size)} and {header.frames:,} frames{rate} in the file, {taken:,} of them taken"
        after = final_size(size, self.options.image)
        return text if after == size else f"{text}, {in_pixels(after)} after {self.resized_by}"

    def captions(self) -> list[str]:
        """The times of a video's frames."""
        if not self.is_video:
            return []
        header = video_header(self.path, self.options.video)
        numbers = frame_numbers(header, self.options.video)
        return [f"{number / header.fps:.2f} s" if header.fps else f"frame {number}" for number in numbers]

    def pictures(self) -> list[Image.Image]:
        """What the processor gets."""
        if not self.is_video:
            return [load_image(self.path, self.options.image)]
        frames = load_video(self.path, self.options.video).frames
        return [resized(Image.fromarray(frame), self.options.image) for frame in frames]


def seen_media(collator: Collator, example: Example) -> list[Medium]:
    """An example's media as the tensors of the collator hold them.

    Where the tensors cannot be turned back into pictures, these are what the processor gets, and the words say so.

    Raises:
        MediaError: a file cannot be read.
        UserError: the processor refuses it.
    """
    options = limited(collator.media, example.media_limit)
    resized_by = "collator.image_processing" if example.media_limit is None else "collator.overlong=shrink_image"
    files = [
        _File(path, options, resized_by, is_video)
        for paths, is_video in zip(shown_media(example, options), (False, True), strict=True)
        for path in paths
    ]
    if not files:
        return []
    batch = collator([example])
    groups = seen_pictures(batch, collator.processor, only_videos=not example.images)
    if groups is None:
        tensors = _tensors(batch)
        return [_unseen(file, tensors) for file in files]
    if len(groups) != len(files):  # the tensors do not tell where a file ends and the next begins
        everything = [picture for group in groups for picture in group]
        title, about = ("; ".join(texts) for texts in zip(*((file.title, file.way()) for file in files), strict=True))
        captions = [caption for file in files for caption in file.captions()]
        return [_seen(title, about, everything, captions)]
    return [_seen(f.title, f.way(), pictures, f.captions()) for f, pictures in zip(files, groups, strict=True)]


def _seen(title: str, way: str, pictures: Sequence[Image.Image], times: Sequence[str]) -> Medium:
    sizes = " or ".join(in_pixels(size) for size in dict.fromkeys(picture.size for picture in pictures))
    about = f"{way}; the model sees {len(pictures):,} {'picture' if len(pictures) == 1 else 'pictures'} of {sizes}."
    if times and len(pictures) >= len(times):
        # A processor that takes frames in pairs repeats the last of an odd number.
        captions = [time if time is not None else "repeated" for _, time in zip_longest(pictures, times)]
    else:
        captions = [f"{n} of {len(pictures)}" if len(pictures) > 1 else "" for n in range(1, len(pictures) + 1)]
    return Medium(title, about, list(zip(pictures, captions, strict=True)))


def _unseen(file: _File, tensors: str) -> Medium:
    about = (
        f"{file.way()}; this is what the processor gets: its tensors ({tensors}) cannot be turned back into pictures."
    )
    pictures = file.pictures()
    return Medium(file.title, about, list(zip(pictures, file.captions() or [""], strict=True)))


def _tensors(batch: Mapping[str, torch.Tensor]) -> str:
    return ", ".join(f"{name} {list(value.shape)}" for name, value in batch.items() if value.is_floating_point())


def in_pixels(size: tuple[int, int]) -> str:
    """Width and height in words."""
    return f"{size[0]:,} x {size[1]:,} px"
