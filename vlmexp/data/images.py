"""Images: from a file to the upright RGB picture that a processor takes, and its size from the file's header alone."""

from __future__ import annotations

import contextlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError
from PIL.Image import Transpose

from vlmexp.errors import UserError

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)  # Pillow refuses files whose width times height is more
_SRGB = ImageCms.createProfile("sRGB")
_LAB = ImageCms.createProfile("LAB")
# The values of the EXIF orientation tag that ask for something.
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT, 3: Transpose.ROTATE_180, 4: Transpose.FLIP_TOP_BOTTOM, 5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270, 7: Transpose.TRANSVERSE, 8: Transpose.ROTATE_90,
}  # fmt: skip


class MediaError(UserError):
    """An image or a video that cannot be used; `reason` is what such errors are counted by."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


@dataclass(frozen=True)
class ImageOptions:
    """What is done to an image before the processor sees it.

    Attributes:
        convert_to_rgb: give RGB, transparency on white; without it the image keeps its mode, 8 bits a channel.
        resize_mode: `keep_aspect` scales an image whose longer side exceeds `max_size` down to it and leaves others
            alone; `crop` scales the shorter side to `max_size`, up or down, and cuts the square in the middle out;
            `stretch` scales both sides to `max_size`.
        max_size: pixels; None: the image keeps its size, whatever the mode.
    """

    convert_to_rgb: bool = True
    resize_mode: str = "keep_aspect"
    max_size: int | None = None


def image_size(path: Path, options: ImageOptions | None = None) -> tuple[int, int]:
    """Width and height in pixels of what `load_image` would give, from the file's header.

    Raises:
        MediaError: the file is missing, is no image that Pillow can read, or has more than MAX_PIXELS pixels.
    """
    with _opened(path) as image:
        size = (image.height, image.width) if _orientation(image) >= 5 else image.size  # 5 to 8: a quarter turn
    return final_size(size, options or ImageOptions())


def load_image(path: Path, options: ImageOptions | None = None) -> Image.Image:
    """Decode an image, upright and resized; of an animation the first frame.

    Sixteen bits a channel are scaled to eight. Pixels of 32 bits have no white of their own: integers up to 65,535 are
    taken for 16 bits, floats up to 1 for shares of white and up to 255 for 8 bits, and else the range from the least
    to the largest value becomes black to white.

    Raises:
        MediaError: the file is missing, damaged, no image, or has more than MAX_PIXELS pixels.
    """
    options = options or ImageOptions()
    with _opened(path) as opened:
        orientation = _orientation(opened)  # before decoding, which finds what image_size does not see
        opened.load()
        image = _to_8_bit(opened)
        if orientation in _TURNS:
            image = image.transpose(_TURNS[orientation])
        return resized(_to_rgb(image) if options.convert_to_rgb else image.copy(), options)


def final_size(size: tuple[int, int], options: ImageOptions) -> tuple[int, int]:
    """Width and height in pixels that an image of this width and height is resized to."""
    limit = options.max_size
    if limit is None:
        return size
    if options.resize_mode in ("crop", "stretch"):
        return limit, limit
    longest = max(size)
    width, height = (max(1, round(side * limit / longest)) for side in size)
    return (width, height) if longest > limit else size


def resized(image: Image.Image, options: ImageOptions) -> Image.Image:
    """The image at its final size; the same image if it has it."""
    size = final_size(image.size, options)
    if size == image.size:
        return image
    box = (0.0, 0.0, float(image.width), float(image.height))
    if options.resize_mode == "crop":
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    # Pillow scales palettes and black-and-white by the nearest pixel and everything else with antialiasing.
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Pixels of 16 or 32 bits as greys of 8; any other image as it is."""
    import numpy as np

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image).astype(np.float64)
    least, largest = float(values.min()), float(values.max())
    if image.mode.startswith("I") and least >= 0 and largest <= 65_535:
        least, largest = 0.0, 65_535.0
    elif image.mode == "F" and least >= 0 and largest <= 255:
        least, largest = 0.0, 1.0 if largest <= 1 else 255.0
    scaled = (values - least) * (255 / ((largest - least) or 1))
    return Image.fromarray(np.nan_to_num(scaled).round().astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    if image.mode == "LAB":
        converted = ImageCms.profileToProfile(image, _LAB, _SRGB, outputMode="RGB")
        assert converted is not None
        return converted
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation that is still to be undone, 1 to 8; 1 where there is none or it is damaged."""
    if image.format == "TIFF":  # the one format that Pillow turns itself
        return 1
    try:
        # Image's own method: that of PNG files decodes all pixels to look for a tag behind them.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # whatever damaged EXIF data raise, the picture itself may be whole
        return 1
    return value if value in _TURNS else 1


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    require_file("image", path)
    try:
        with Image.open(path) as image:
            yield image
    except Image.DecompressionBombError:
        raise MediaError(
            "too large",
            f"The image {path} has more than {MAX_PIXELS:,} pixels and is taken for a decompression bomb: shrink it.",
        ) from None
    except UnidentifiedImageError:
        raise MediaError(
            "unknown format", f"The image {path} cannot be read: it is in no format that Pillow knows."
        ) from None
    except Exception as error:  # a decoder raises whatever a damaged file leads it to
        raise MediaError("damaged", f"The image {path} cannot be read: {_first_line(error)}.") from None


def require_file(kind: str, path: Path) -> None:
    """Raise a MediaError unless there is a regular file: a device or a pipe might be read for ever."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise MediaError("missing", f"The {kind} {_shown(path)} does not exist.") from None
    except (OSError, ValueError) as error:  # a loop of links, a name too long or with a null character
        reason = error.strerror if isinstance(error, OSError) else _first_line(error)
        raise MediaError("missing", f"The {kind} {_shown(path)} cannot be looked at: {reason}.") from None
    if not stat.S_ISREG(mode):
        what = "folder" if stat.S_ISDIR(mode) else "device or pipe"
        raise MediaError("not a file", f"The {kind} {path} is a {what} and not a file.")


def _shown(path: Path) -> str:
    """The path, or the beginning of one that is too long to read: it may be an image in base64."""
    text = str(path)
    return text if len(text) <= 400 else f"{text[:200]}... ({len(text):,} characters)"


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__} {str(error).strip()}".strip().splitlines()[0].rstrip(".")
