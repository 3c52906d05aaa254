"""Opening an image file that may be anything: which formats there are, and what its header may cost.

Pillow reads more than pictures: PostScript starts Ghostscript, and some formats hold a reference or a packed stream
without an end. What is opened here is raster formats alone, and what stands in front of the pixels has a limit.
"""

from __future__ import annotations

import contextlib
import io
import struct
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageFile, UnidentifiedImageError

from vlmexp.data.limits import MIB, budget
from vlmexp.data.regular_files import Regular, Unopened, open_regular, require_stored
from vlmexp.errors import UserError

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**26)  # Pillow refuses files whose width times height is more
# In the order in which Pillow tries them. Not EPS and WMF, which are programs; not BLP, BUFR, FITS, FTEX, GBR, GRIB,
# HDF5, IMT, IPTC, MCIDAS, MPEG, PCD, PIXAR and XVTHUMB, which no data set of pictures has.
FORMATS = (
    "BMP", "DIB", "GIF", "JPEG", "PPM", "PNG", "AVIF", "CUR", "DCX", "DDS", "FLI", "ICNS", "ICO", "IM", "JPEG2000",
    "MSP", "PCX", "PSD", "QOI", "SGI", "SPIDER", "SUN", "TGA", "TIFF", "WEBP", "XBM", "XPM",
)  # fmt: skip
_LARGEST = 2**31  # bytes of an image file: MAX_PIXELS of 8 bytes, and half as much beside them
_HEADER = 64 * MIB  # bytes that may be read before the pixels
_CHUNKS = 16 * MIB  # bytes of a PNG file that are no pixels
_SLOW_PIXELS = 2**23  # of a format that Pillow decodes in Python, a microsecond and more for each
_SCANNED = 2**34  # pixels of all scans of a progressive JPEG together, which takes some ten seconds
# Bytes a pixel that decoders need beside Pillow's own image, measured with photographs.
_DECODER = {"WEBP": 13, "AVIF": 12, "JPEG2000": 22, "SGI": 4, "DDS": 4}
_INNER = 8 * 1032  # pixels of a PNG inside of another file for each of its bytes: a bit each, packed by deflate's most
# Pillow takes memory in blocks of 16 MiB, which the C library keeps for each thread after they are given back; what is
# more than 32 MiB it returns at once. See "Block allocator" in Pillow's documentation.
Image.core.set_block_size(2**30)  # type: ignore[attr-defined]


class MediaError(UserError):
    """An image or a video that cannot be used; `reason` is what such errors are counted by."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def open_media(kind: str, path: Path) -> Regular:
    """Open the file of an image or a video; raises a MediaError where there is none to read."""
    try:
        file = open_regular(path)
    except Unopened as error:
        raise MediaError(error.reason, f"The {kind} {_shown(path)} {error}.") from None
    try:
        _require_size(kind, path, file)
    except BaseException:
        file.close()
        raise
    return file


def _require_size(kind: str, path: Path, file: Regular) -> None:
    if file.size > budget.most_bytes:
        raise MediaError(
            "too large",
            f"The {kind} {path} has {file.size:,} bytes, more than dataset.max_file_gib="
            f"{budget.limits.max_file_gib:g}: shrink it, or raise that limit.",
        )
    if kind == "image" and file.size > _LARGEST:
        raise MediaError(
            "too large",
            f"The image {path} has {file.size:,} bytes, more than {_LARGEST:,}, which hold any picture that is read: "
            "save it anew.",
        )
    try:
        require_stored(file)
    except Unopened as error:
        raise MediaError(error.reason, f"The {kind} {path} {error}.") from None


@contextlib.contextmanager
def opened_image(path: Path, opened: Regular | None = None) -> Iterator[ImageFile.ImageFile]:
    """An image whose header has been read. Whatever is raised in the block, too, becomes a MediaError.

    Args:
        opened: its file, where that is open already, which then stays open.
    """
    with contextlib.nullcontext(opened) if opened else open_media("image", path) as file:
        try:
            file.allow(_HEADER)
            _require_plain_header(file)
            # Pillow reads a header in some fifty pieces: of a small file from memory.
            source = io.BytesIO(file.content()) if file.is_small else file
            image = Image.open(source, formats=FORMATS)
            file.allow(None)
            with image:
                yield image
        except MediaError:
            raise
        except Unopened as error:
            raise MediaError(error.reason, f"The image {path} {error}.") from None
        except Image.DecompressionBombError:
            raise MediaError(
                "too large",
                f"The image {path} has more than {MAX_PIXELS:,} pixels and is taken for a decompression bomb: shrink "
                "it.",
            ) from None
        except UnidentifiedImageError:
            raise MediaError(
                "unknown format",
                f"The image {path} cannot be read: it is in no format that Pillow knows, or in one without pixels.",
            ) from None
        except Exception as error:  # a decoder raises whatever a damaged file leads it to
            raise MediaError("damaged", f"The image {path} cannot be read: {first_line(error)}.") from None


@contextlib.contextmanager
def decoding(path: Path, image: ImageFile.ImageFile, size: int) -> Iterator[None]:
    """Decode the pixels, with so many bytes taken out of the budget for decoding and for what is made of them.

    Raises:
        MediaError: there are not so many.
    """
    if size > budget.size:
        raise MediaError(
            "too large",
            f"The image {path}, {image.width:,} x {image.height:,} in {image.format}, needs about {size / MIB:,.0f} "
            f"MiB to be decoded, more than dataset.decode_memory_mib={budget.limits.decode_memory_mib}: shrink it, or "
            "raise that limit.",
        )
    with budget.taken(size):
        image.load()
        yield


def decoder_size(image: ImageFile.ImageFile, file_size: int) -> int:
    """Bytes that a decoder needs beside the decoded image, for a file of so many bytes."""
    pixels, format = image.width * image.height, image.format or ""
    if format in ("ICO", "ICNS", "CUR"):  # the picture inside may be larger than the header says
        return min(MAX_PIXELS, file_size * _INNER) * 4
    if format == "TIFF":
        turned = pixels * 4 if image.tag_v2.get(274, 1) != 1 else 0  # type: ignore[attr-defined]
        return turned + (2 * _strip_size(image) if any(tile[0] == "libtiff" for tile in image.tile) else 0)
    if format in ("JPEG", "MPO"):
        return _coefficients_size(image) if image.info.get("progressive") else 0
    return pixels * _DECODER.get(format, 0)


def row_size(image: ImageFile.ImageFile) -> int:
    """Bytes of the two rows, as they are in the file, that a decoder keeps: as much as the image if it has only one."""
    channel = 4 if image.mode in ("I", "F") else 2 if any("16" in str(tile[3]) for tile in image.tile) else 1
    return 2 * image.width * len(image.getbands()) * channel


def _coefficients_size(image: ImageFile.ImageFile) -> int:
    """Bytes of what a progressive JPEG is gathered in: two for each sample of each component, at its own resolution."""
    factors = [(across, down) for _, across, down, _ in image.layer]  # type: ignore[attr-defined]
    widest, highest = (max(sides) for sides in zip(*factors, strict=True))
    return 2 * image.width * image.height * sum(a * d for a, d in factors) // (widest * highest)


def _strip_size(image: ImageFile.ImageFile) -> int:
    """Bytes of the largest piece that libtiff decodes at once."""
    tags = image.tag_v2  # type: ignore[attr-defined]
    width, rows = tags.get(322, image.width), tags.get(323, min(tags.get(278, image.height), image.height))
    return int(width * rows * tags.get(277, 1) * max(1, max(tags.get(258, (8,))) // 8))


def require_fast(path: Path, image: ImageFile.ImageFile) -> None:
    """Raise a MediaError for an image that takes minutes to decode, whatever its size in bytes."""
    pixels = image.width * image.height
    if pixels > _SLOW_PIXELS and any(tile[0] in Image.DECODERS for tile in image.tile):
        raise MediaError(
            "too large",
            f"The image {path} has {pixels:,} pixels, more than the {_SLOW_PIXELS:,} that are read of a "
            f"{image.format} file of its kind, pixel by pixel: save it in another format.",
        )
    if image.info.get("progressive") and pixels > 2**20 and (scans := _scans(path)) * pixels > _SCANNED:
        raise MediaError(
            "too large",
            f"The image {path} has {pixels:,} pixels in {scans:,} scans, which would take minutes: save it anew.",
        )


def _scans(path: Path) -> int:
    """How many scans a JPEG file has: the mark of one does not occur in its pixels."""
    with open_regular(path) as file:
        return sum(block.count(b"\xff\xda") for block in iter(lambda: file.read(2**20), b""))


def _require_plain_header(file: Regular) -> None:
    """Refuse headers that would make a small file large while it is opened."""
    start = file.head(8)
    if file.is_small and not any(mark in file.content() for mark in (b"Exif\0\0", b"MPF\0", b"\x89PNG")):
        return  # it is small, and has no tags
    if start.startswith(b"\xff\xd8"):
        _require_plain_jpeg(file)
    elif start == b"\x89PNG\r\n\x1a\n" and file.size > 2 * _CHUNKS:
        _require_plain_png(file)
    file.seek(0)


def _require_plain_jpeg(file: Regular) -> None:
    """The tags of a JPEG's header may all stand for the same bytes, and each is copied."""
    file.seek(2)
    exif, first, mark = 0, b"", b""
    while len(mark := file.read(4)) == 4 and mark[0] == 0xFF and mark[1] != 0xDA:
        length = struct.unpack(">H", mark[2:])[0] - 2
        if mark[1] in (0xE1, 0xE2):
            segment = file.read(max(0, length))
            if segment.startswith(b"Exif\0\0"):
                first, exif = first or segment[6:], exif + length
            elif segment.startswith(b"MPF\0") and copied_by_tags(segment[4:], length) > _HEADER:
                raise Unopened("damaged", f"has tags of more bytes than {_HEADER:,}")
        else:
            file.seek(max(0, length), 1)
    if copied_by_tags(first, exif) > _HEADER:
        raise Unopened("damaged", f"has tags of more bytes than {_HEADER:,}")


def copied_by_tags(exif: bytes, length: int) -> int:
    """The most bytes that the tags of EXIF data of so many bytes can stand for."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return 0
    start = struct.unpack(f"{order}I", exif[4:8])[0]
    count = struct.unpack(f"{order}H", exif[start : start + 2])[0] if start + 2 <= len(exif) else 0xFFFF
    return int(count) * length


def _require_plain_png(file: Regular) -> None:
    """A chunk beside the pixels is read as a whole, also behind them."""
    file.seek(8)
    other = 0
    while len(head := file.read(8)) == 8:
        length = struct.unpack(">I", head[:4])[0]
        other += 0 if head[4:] == b"IDAT" else length
        file.seek(length + 4, 1)
    if other > _CHUNKS:
        raise Unopened("too large", f"has {other:,} bytes beside its pixels, more than {_CHUNKS:,}")


def _shown(path: Path) -> str:
    """The path, or the beginning of one that is too long to read: it may be an image in base64."""
    text = str(path)
    return text if len(text) <= 400 else f"{text[:200]}... ({len(text):,} characters)"


def first_line(error: BaseException) -> str:
    """An error's kind and the first line of what it says."""
    return f"{type(error).__name__} {str(error).strip()}".strip().splitlines()[0].rstrip(".")
