"""Reading every image and video of a data set once, before anything is trained on them."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from vlmexp.data.image_files import MediaError, open_media
from vlmexp.data.images import picture
from vlmexp.data.limits import budget
from vlmexp.data.pictures import HEAD, identity, looks, shrunk, stored_name
from vlmexp.data.regular_files import Regular, Unopened, content_digest, digest_of
from vlmexp.data.videos import check_video

_LOOKED_AT = 2**20  # pixels of a large picture, for what it looks like
_SMALL = 2**28  # bytes of a file that cannot be used: of a larger one the content is not read only to know it again
_QUICK = 2**14  # bytes of an image's file
_TOGETHER = 256  # files
WORKERS = min(16, os.cpu_count() or 1)  # threads: decoding and hashing let go of Python's lock


@dataclass(slots=True)
class Verified:
    """What is known of a file: how it lies on disk, the hash of its content, what is wrong with it, what it shows."""

    stamp: list[int] | None  # see `stamp`
    sha256: str | None
    error: MediaError | None
    name: str = ""  # under which its bytes would be stored
    shows: bytes = b""  # equal for files that show the same
    look: bytes = b""  # of an image, see `pictures.looks`
    size: tuple[int, int] | None = None  # width and height of an image, upright


def verify(media: Mapping[Path, str], root: Path, description: str, video_library: str) -> dict[Path, Verified]:
    """Decode all pixels of every image, and the first, a middle and the last frame of every video.

    Args:
        media: file, relative to `root` or absolute -> image or video.
    """

    def verified(path: Path, file: Path, kind: str) -> tuple[Verified, Image.Image | None]:
        try:
            found, name, shows, small, size = (_of_video if kind == "video" else _of_image)(file, video_library)
        except MediaError as raised:
            error, seen_last = MediaError(raised.reason, str(raised).replace(str(file), str(path))), stamp(file)
            is_small = seen_last is not None and seen_last[0] <= _SMALL
            return Verified(seen_last, content(file) if is_small else None, error), None
        return Verified(stamp(file), found, None, name if path.is_absolute() else str(path), shows, b"", size), small

    def all_verified(pool: Executor) -> Iterator[tuple[Verified, Image.Image | None]]:
        rest = iter(media.items())
        while some := list(itertools.islice(rest, _TOGETHER)):
            together = [(path, path if path.is_absolute() else root / path, kind) for path, kind in some]
            begun = {
                place: pool.submit(verified, *one)
                for place, one in enumerate(together)
                if one[2] == "video" or not _is_quick(one[1])
            }
            yield from (
                begun[place].result() if place in begun else verified(*one) for place, one in enumerate(together)
            )

    with ThreadPoolExecutor(WORKERS) as pool:
        found = tqdm(all_verified(pool), description, total=len(media), unit=" files", leave=False)
        return dict(zip(media, _looked_at(found), strict=True))


def _looked_at(found: Iterable[tuple[Verified, Image.Image | None]]) -> Iterator[Verified]:
    """The files with what the shrunk images beside them look like, which takes half the time for many together."""
    rest = iter(found)
    while together := list(itertools.islice(rest, _TOGETHER)):
        images = [(file, small) for file, small in together if small is not None]
        for (file, _), seen in zip(images, looks([small for _, small in images]), strict=True):
            file.look = seen
        yield from (file for file, _ in together)


def _is_quick(path: Path) -> bool:
    """Whether to hand an image to a thread costs more than to decode it."""
    found = state(path)
    return found is not None and found[0] < _QUICK


def _of_image(file: Path, _: str) -> tuple[str, str, bytes, Image.Image, tuple[int, int]]:
    """Hash, name, what an image shows, itself made small, and its size; its file is opened once."""
    begun = time.monotonic()
    with open_media("image", file) as opened:
        with picture(file, opened=opened) as image:
            shows, small = identity(image.size, image.pieces()), shrunk(image.within(_LOOKED_AT))
            size = image.size
        found = _hash("image", file, opened, time.monotonic() - begun)
        return found, stored_name(found, opened.head(HEAD)), shows, small, size


def _of_video(file: Path, library: str) -> tuple[str, str, bytes, None, None]:
    """The same of a video, which shows its bytes."""
    begun = time.monotonic()
    check_video(file, library)
    with open_media("video", file) as opened:
        found = _hash("video", file, opened, time.monotonic() - begun)
        return found, stored_name(found, opened.head(HEAD)), bytes.fromhex(found)[:16], None, None


def _hash(kind: str, path: Path, opened: Regular, spent: float) -> str:
    """SHA-256 of the bytes of a file that could be decoded, for which so many seconds are spent already."""
    most = budget.limits.decode_timeout_s
    try:
        return digest_of(opened, max(most - spent, most / 2))
    except Unopened as error:
        way_out = ": raise dataset.decode_timeout_s" if error.reason == "too slow" else ""
        raise MediaError(error.reason, f"The {kind} {path} {error}{way_out}.") from None
    except OSError:
        raise MediaError("missing", f"The {kind} {path} cannot be read any more.") from None


def state(path: Path) -> list[int] | None:
    """Size in bytes and time of the last change in ns of a file; None if it cannot be looked at."""
    found = stamp(path)
    return None if found is None else found[:2]


def stamp(path: Path | str) -> list[int] | None:
    """The state of a file and the time, in ns, of the last change of that, which nobody can set; None as above."""
    try:
        found = os.stat(path)
    except (OSError, ValueError):
        return None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def content(path: Path) -> str | None:
    """SHA-256 of the file's bytes; None if they cannot be read, or are more than a file may have."""
    try:
        return content_digest(path, budget.most_bytes)
    except OSError:
        return None
