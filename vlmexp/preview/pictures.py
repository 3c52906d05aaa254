"""From a processor's tensors back to pictures: what the model sees, and not what it was meant to see."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from transformers import ProcessorMixin

_QUALITY = 82
_LOSSLESS = 128  # pixels on the longer side, up to which every pixel is kept
# (tensor of a batch, its grid, the part of the processor that makes it)
_TENSORS = (
    ("pixel_values", "image_grid_thw", "image_processor"),
    ("pixel_values_videos", "video_grid_thw", "video_processor"),
)


def seen_pictures(
    batch: Mapping[str, torch.Tensor], processor: ProcessorMixin, only_videos: bool
) -> list[list[Image.Image]] | None:
    """The pictures inside the media tensors of a batch, in groups as the tensors hold them.

    Three layouts are known, and told by their shapes: flat patches [patches, values] beside a grid [media, 3] of
    frames, rows and columns; tiles or frames [media, tiles, 3, height, width], filled up with zeros; and
    [pictures, 3, height, width], each a group of its own.

    Args:
        only_videos: the pictures are frames, under whatever name the processor gives them.

    Returns:
        None if a tensor is laid out in another way, or if there is none.
    """
    groups = []
    for name, grid, maker in _TENSORS:
        if name not in batch:
            continue
        part: Any = getattr(processor, "video_processor" if only_videos else maker, None)
        part = part or getattr(processor, "image_processor", None)
        media = _media(batch[name], batch.get(grid), part, is_video=maker == "video_processor")
        if media is None:
            return None
        groups += [[_picture(pixels, part) for pixels in pictures] for pictures in media]
    return groups or None


def as_uri(image: Image.Image, longest: int) -> str:
    """The picture as a data URI, its longer side at most `longest` pixels."""
    small = image.copy()
    small.thumbnail((longest, longest))
    buffer = io.BytesIO()
    small.save(buffer, "WEBP", quality=_QUALITY, lossless=max(small.size) <= _LOSSLESS)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _media(values: torch.Tensor, grid: torch.Tensor | None, part: Any, is_video: bool) -> list[torch.Tensor] | None:
    """[pictures, 3, height, width] for each group."""
    if values.ndim == 2 and grid is not None:
        sizes = grid.prod(-1).tolist()
        frames = [
            _unpatched(patches, numbers, part)
            for patches, numbers in zip(values.split(sizes), grid.tolist(), strict=True)
        ]
        return frames if is_video else [pictures[:1] for pictures in frames]  # an image is repeated in time
    if values.ndim == 5 and values.shape[2] == 3:
        return [tiles[tiles.flatten(1).any(1)] for tiles in values]
    if values.ndim == 4 and values.shape[1] == 3:
        return list(values[:, None])
    return None


def _unpatched(patches: torch.Tensor, grid: list[int], part: Any) -> torch.Tensor:
    """[frames, 3, height, width] of patches in the order of Qwen-VL: squares of `merge_size` patches, row by row."""
    times, rows, columns = grid
    merge, side, frames = part.merge_size, part.patch_size, part.temporal_patch_size
    squares = patches.view(times, rows // merge, columns // merge, merge, merge, 3, frames, side, side)
    return squares.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(times * frames, 3, rows * side, columns * side)


def _picture(pixels: torch.Tensor, part: Any) -> Image.Image:
    """[3, height, width] with the processor's normalising and scaling undone."""
    values = pixels.float()
    if getattr(part, "do_normalize", True):
        mean, std = (torch.tensor(numbers).view(3, 1, 1) for numbers in (part.image_mean, part.image_std))
        values = values * std + mean
    if getattr(part, "do_rescale", True):
        values = values / getattr(part, "rescale_factor", 1 / 255)
    return Image.fromarray(values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())
