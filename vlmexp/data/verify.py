"""Reading every image and video of a data set once, before anything is trained on them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vlmexp.data.images import MediaError, picture
from vlmexp.data.limits import budget
from vlmexp.data.pictures import HEAD, identity, look, stored_name
from vlmexp.data.regular_files import content_digest, open_regular
from vlmexp.data.videos import check_video

_LOOKED_AT = 2**20  # pixels of a large picture, for what it looks like
WORKERS = min(16, os.cpu_count() or 1)  # threads: decoding and hashing let go of Python's lock


@dataclass(frozen=True)
class Verified:
    """What is known of a file: how it lies on disk, the hash of its content, what is wrong with it, what it shows."""

    stamp: list[int] | None  # see `stamp`
    sha256: str | None
    error: MediaError | None
    name: str = ""  # under which its bytes would be stored
    shows: bytes = b""  # equal for files that show the same
    look: bytes = b""  # of an image, see `pictures.look`


def verify(media: Mapping[Path, str], root: Path, description: str, video_library: str) -> dict[Path, Verified]:
    """Decode all pixels of every image, and the first, a middle and the last frame of every video.

    Args:
        media: file, relative to `root` or absolute -> image or video.
    """

    def verified(path: Path, kind: str) -> Verified:
        file = root / path
        found, shows, seen = content(file), b"", b""
        try:
            if kind == "video":
                check_video(file, video_library)
            else:
                with picture(file) as image:
                    shows, seen = identity(image.size, image.pieces()), look(image.within(_LOOKED_AT))
            if found is None:
                raise MediaError("missing", f"The {kind} {file} cannot be read any more.")
        except MediaError as raised:
            error = MediaError(raised.reason, str(raised).replace(str(file), str(path)))
            return Verified(stamp(file), found, error)
        name = _stored_name(file, found) if path.is_absolute() else str(path)
        return Verified(stamp(file), found, None, name, shows or bytes.fromhex(found)[:16], seen)

    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(verified, media, media.values())
        return dict(zip(media, tqdm(found, description, total=len(media), unit=" files", leave=False), strict=True))


def _stored_name(file: Path, sha256: str) -> str:
    with open_regular(file) as opened:
        return stored_name(sha256, opened.read(HEAD))


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
