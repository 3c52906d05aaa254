"""Images: from a file to the upright RGB picture that a processor takes, and its size from the file's header alone.

Pillow keeps four bytes for a pixel of RGB. A picture of ordinary size is converted as a whole; of a large one there is
the decoded image and nothing else of its size: it is converted, scaled and hashed in pieces.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageCms, ImageFile
from PIL.Image import Transpose

from vlmexp.data.image_files import MAX_PIXELS as MAX_PIXELS
from vlmexp.data.image_files import MediaError as MediaError
from vlmexp.data.image_files import copied_by_tags, decoder_size, decoding, opened_image, require_fast, row_size
from vlmexp.data.regular_files import Regular

LARGE = 2**25  # pixels: 5,792 x 5,792
_PIECE = 2**20  # pixels that are converted at once
_MOST_EXIF = 2**26  # bytes that tags may stand for
_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.createProfile("LAB")
# The values of the EXIF orientation tag that ask for something.
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip
# For each, where a pixel comes from: whether column and row are exchanged, and which are counted from the other end.
_SOURCES = {
    1: (False, False, False), 2: (False, True, False), 3: (False, True, True), 4: (False, False, True),
    5: (True, False, False), 6: (True, False, True), 7: (True, True, True), 8: (True, True, False),
}  # fmt: skip
Box = tuple[int, int, int, int]  # left, top, right, bottom


@dataclass(frozen=True)
class ImageOptions:
    """What is done to an image before the processor sees it.

    Attributes:
        convert_to_rgb: give RGB, transparency on white; without it the image keeps its mode, 8 bits a channel.
        resize_mode: `keep_aspect` scales an image whose longer side exceeds `max_size` down to it and leaves others
            alone; `crop` scales the shorter side to `max_size`, up or down, and cuts the square in the middle out;
            `stretch` scales both sides to `max_size`.
        max_size: pixels; None: the image keeps its size, whatever the mode.
        max_pixels: width times height; an image that still has more is scaled down to it.
    """

    convert_to_rgb: bool = True
    resize_mode: str = "keep_aspect"
    max_size: int | None = None
    max_pixels: int = LARGE


class Picture:
    """A decoded image, as it is in the file and as it is to be seen.

    Args:
        image: as decoded, which may be smaller than in the file.
        orientation: the EXIF orientation that is still to be undone, 1 to 8.
        size: width and height in the file, upright.
    """

    def __init__(self, image: Image.Image, orientation: int, size: tuple[int, int]) -> None:
        self._image, self._orientation, self.size = image, orientation, size
        self._is_large = image.width * image.height > LARGE

    @cached_property
    def rgb(self) -> Image.Image:
        """All of it, upright in RGB; transparency on white. Not for a large one."""
        return _turned(_to_rgb(self._image, self._scale), self._orientation)

    def pieces(self) -> Iterator[Image.Image]:
        """All of it, upright in RGB, in pieces whose bytes in turn are those of the whole."""
        width, height = self._image.size
        if width * height <= _PIECE and not self._is_large:
            yield self.rgb
            return
        for box in _boxes(*((height, width) if self._orientation >= 5 else (width, height))):
            if self._is_large:
                part = self._image.crop(_source(box, self._image.size, self._orientation))
                yield _turned(_to_rgb(part, self._scale), self._orientation)
            else:
                yield self.rgb.crop(box)

    def within(self, most: int, in_rgb: bool = True) -> Image.Image:
        """Upright, a large one scaled down to at most so many pixels; in RGB, or in its own mode with 8 bits."""
        if not self._is_large:
            return self.rgb if in_rgb else _turned(self._in_mode(self._image.copy(), in_rgb), self._orientation)
        # By the nearest pixel, of which there is one, without weights for every other.
        first = self._in_mode(self._image.crop((0, 0, 1, 1)), in_rgb)
        small = first.resize(self._lying(most), Image.Resampling.NEAREST)
        for box in _tiles(small.size, self._image.size):
            small.paste(self._scaled(box, small.size, in_rgb), box)
        return _turned(small, self._orientation)

    def _in_mode(self, part: Image.Image, in_rgb: bool) -> Image.Image:
        if in_rgb:
            return _to_rgb(part, self._scale)
        return part if self._scale is None else _in_pieces(part, "L", self._scale.greys)

    def _lying(self, most: int) -> tuple[int, int]:
        """The size that a large image is scaled to, before it is turned."""
        return _upright_size(within(self.size, most), self._orientation)

    def _scaled(self, box: Box, size: tuple[int, int], in_rgb: bool) -> Image.Image:
        """A part of the image that is scaled to a size: the pixels that it would have if all was scaled at once."""
        scales = [old / new for old, new in zip(self._image.size, size, strict=True)]
        left, top, right, bottom = (edge * scale for edge, scale in zip(box, [*scales, *scales], strict=True))
        reach_x, reach_y = (2 * max(1.0, scale) + 2 for scale in scales)  # of the filter, in pixels of the image
        crop = (
            max(0, int(left - reach_x)),
            max(0, int(top - reach_y)),
            min(self._image.width, math.ceil(right + reach_x)),
            min(self._image.height, math.ceil(bottom + reach_y)),
        )
        part = self._in_mode(self._image.crop(crop), in_rgb)
        inner = (left - crop[0], top - crop[1], min(right - crop[0], part.width), min(bottom - crop[1], part.height))
        return part.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC, box=inner)

    @cached_property
    def _scale(self) -> Scale | None:
        return _scale(self._image)


def image_size(path: Path, options: ImageOptions | None = None) -> tuple[int, int]:
    """Width and height in pixels of what `load_image` would give, from the file's header; without options, of the file.

    Raises:
        MediaError: the file is missing, is no image that Pillow can read, or has more than MAX_PIXELS pixels.
    """
    with opened_image(path) as image:
        size = _upright_size(image.size, _orientation(image))
    return size if options is None else final_size(size, options)


def load_image(path: Path, options: ImageOptions | None = None) -> Image.Image:
    """Decode an image, upright and resized; of an animation the first frame.

    Sixteen bits a channel are scaled to eight. Pixels of 32 bits have no white of their own: integers up to 65,535 are
    taken for 16 bits, floats up to 1 for shares of white and up to 255 for 8 bits, and else the range from the least
    to the largest value becomes black to white.

    Raises:
        MediaError: the file is missing, damaged, no image, has more than MAX_PIXELS pixels, or needs more memory than
            there is for decoding.
    """
    options = options or ImageOptions()
    with picture(path, options.max_pixels) as found:
        image = found.within(options.max_pixels, options.convert_to_rgb)
        return _at_size(image, final_size(found.size, options), options)


def small_image(path: Path, side: int) -> Image.Image | None:
    """An image in RGB with at most so many pixels on its longer side; None if it cannot be read."""
    try:
        image = load_image(path)
    except MediaError:
        return None
    image.thumbnail((side, side))
    return image


@contextlib.contextmanager
def picture(path: Path, most: int | None = None, opened: Regular | None = None) -> Iterator[Picture]:
    """The decoded image in a file. Its memory is taken out of the budget until the block ends.

    Args:
        most: pixels; a large image may be decoded at a reduced size that has at least so many. None: all pixels.
        opened: its file, see `opened_image`.

    Raises:
        MediaError: as `load_image`; also of whatever is raised in the block.
    """
    with opened_image(path, opened) as image:
        orientation = _orientation(image)  # before decoding, which finds what image_size does not see
        size = _upright_size(image.size, orientation)
        require_fast(path, image)
        beside = decoder_size(image, opened.size if opened else path.stat().st_size) + row_size(image)
        if most is not None and image.width * image.height > LARGE:
            image.draft(None, within(image.size, most))  # JPEG alone can
        with decoding(path, image, beside + _needed(image, most or 0)):
            yield Picture(image, orientation, size)


def final_size(size: tuple[int, int], options: ImageOptions) -> tuple[int, int]:
    """Width and height in pixels that an image of this width and height is resized to."""
    limit = options.max_size
    if limit is not None and options.resize_mode in ("crop", "stretch"):
        return limit, limit
    if limit is not None and (longest := max(size)) > limit:
        width, height = (max(1, round(side * limit / longest)) for side in size)
        size = width, height
    return within(size, options.max_pixels)


def shown_part(size: tuple[int, int], options: ImageOptions) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of what is left of an image of this width and height, in its pixels."""
    width, height = size
    if options.resize_mode != "crop" or options.max_size is None:
        return 0.0, 0.0, float(width), float(height)
    side = min(size)
    left, top = (width - side) / 2, (height - side) / 2
    return left, top, left + side, top + side


def within(size: tuple[int, int], most: int) -> tuple[int, int]:
    """A size of the same shape with at most so many pixels.

    >>> within((4000, 3000), 10**6), within((10, 20), 200), within((1, 10**6), 10**3)
    ((1154, 866), (10, 20), (1, 1000))
    """
    width, height = size
    if width * height <= most:
        return size
    scale = math.sqrt(most / (width * height))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    width = min(width, max(1, most // height))  # a side of one pixel cannot become shorter
    return width, min(height, most // width)


def resized(image: Image.Image, options: ImageOptions) -> Image.Image:
    """The image at its final size; the same image if it has it."""
    return _at_size(image, final_size(image.size, options), options)


def _at_size(image: Image.Image, size: tuple[int, int], options: ImageOptions) -> Image.Image:
    if size == image.size:
        return image
    # Pillow scales palettes and black-and-white by the nearest pixel and everything else with antialiasing.
    # It keeps 32 bytes of weights for each pixel of a side, so that a long one is first made shorter by whole numbers.
    gap = 3.0 if max(image.size) > _PIECE else None
    return image.resize(size, Image.Resampling.BICUBIC, box=shown_part(image.size, options), reducing_gap=gap)


@dataclass(frozen=True)
class Scale:
    """Which values of 16 or 32 bits are black and white."""

    black: float
    white: float

    def greys(self, image: Image.Image) -> Image.Image:
        """The image in 8 bits."""
        import numpy as np

        def scaled(values: Any) -> Any:
            shares = (values.astype(np.float64) - self.black) * (255 / ((self.white - self.black) or 1))
            return np.nan_to_num(shares).round().astype(np.uint8)

        values = np.asarray(image)
        if values.dtype.itemsize == 2:
            return Image.fromarray(scaled(np.arange(65_536))[values])
        return Image.fromarray(scaled(values))


def _scale(image: Image.Image) -> Scale | None:
    """How pixels of 16 or 32 bits become greys; None for any other image."""
    import numpy as np

    if not image.mode.startswith(("I", "F")):
        return None
    if image.mode.startswith("I;16"):
        return Scale(0.0, 65_535.0)
    parts = (np.asarray(image.crop(box)) for box in _boxes(*image.size))
    ranges = np.array([(part.min(), part.max()) for part in parts], np.float64)
    least, largest = float(ranges[:, 0].min()), float(ranges[:, 1].max())
    if image.mode == "I" and least >= 0 and largest <= 65_535:
        return Scale(0.0, 65_535.0)
    if image.mode == "F" and least >= 0 and largest <= 255:
        return Scale(0.0, 1.0 if largest <= 1 else 255.0)
    return Scale(least, largest)


def _to_rgb(image: Image.Image, scale: Scale | None) -> Image.Image:
    if scale is not None:
        return _in_pieces(image, "RGB", lambda part: scale.greys(part).convert("RGB"))
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        return _in_pieces(image, "RGB", _on_white)
    if image.mode == "LAB":
        return _in_pieces(image, "RGB", _from_lab)
    return image.convert("RGB")


def _on_white(image: Image.Image) -> Image.Image:
    layer = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def _from_lab(image: Image.Image) -> Image.Image:
    converted = ImageCms.profileToProfile(image, _LAB, _SRGB, outputMode="RGB")
    assert converted is not None
    return converted


def _in_pieces(image: Image.Image, mode: str, change: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """The image in another mode, with no more than a piece of it in between."""
    if image.width * image.height <= _PIECE:
        return change(image)
    changed = Image.new(mode, image.size)
    for box in _boxes(*image.size):
        changed.paste(change(image.crop(box)), box)
    return changed


def _boxes(width: int, height: int) -> Iterator[Box]:
    """Pieces of an image in reading order: whole rows, or parts of one where a row is too long."""
    columns, rows = min(width, _PIECE), max(1, _PIECE // width)
    for top, left in itertools.product(range(0, height, rows), range(0, width, columns)):
        yield left, top, min(left + columns, width), min(top + rows, height)


def _tiles(size: tuple[int, int], source: tuple[int, int]) -> Iterator[Box]:
    """Parts of a scaled image, each made of about a piece of its source."""
    across = min(source[0], math.isqrt(_PIECE))
    down = min(source[1], _PIECE // across)
    sides = min(source[0], _PIECE // down), down
    steps = [max(1, new * side // old) for new, side, old in zip(size, sides, source, strict=True)]
    for top, left in itertools.product(range(0, size[1], steps[1]), range(0, size[0], steps[0])):
        yield left, top, min(left + steps[0], size[0]), min(top + steps[1], size[1])


def _source(box: Box, size: tuple[int, int], orientation: int) -> Box:
    """Which part of an image is seen in a box of the upright one."""
    is_exchanged, from_right, from_bottom = _SOURCES[orientation]
    left, top, right, bottom = (box[1], box[0], box[3], box[2]) if is_exchanged else box
    if from_right:
        left, right = size[0] - right, size[0] - left
    if from_bottom:
        top, bottom = size[1] - bottom, size[1] - top
    return left, top, right, bottom


def _turned(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image


def _upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    return (size[1], size[0]) if orientation >= 5 else size  # 5 to 8: a quarter turn


def _needed(image: Image.Image, most: int) -> int:
    """Bytes of the decoded image, and of it in RGB and turned; of a large one with at most so many pixels.

    They are the same for looking at a large image as for making it smaller, so that one that was accepted can be used.
    """
    pixels, one = image.width * image.height, 1 if image.mode in ("1", "L", "P") else 4
    own = pixels * (2 if image.mode.startswith("I;16") else one)
    return own + 2 * 4 * min(pixels, max(most, LARGE))


def _orientation(image: ImageFile.ImageFile) -> int:
    """The EXIF orientation that is still to be undone, 1 to 8; 1 where there is none or it is damaged."""
    if image.format == "TIFF":  # the one format that Pillow turns itself
        return 1
    try:
        exif = image.info.get("exif") or b""
        if copied_by_tags(exif.removeprefix(b"Exif\0\0"), len(exif)) > _MOST_EXIF:
            return 1
        # Image's own method: that of PNG files decodes all pixels to look for a tag behind them.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever damaged EXIF data raise, the picture itself may be whole
        return 1
    return value if value in _TURNS else 1
