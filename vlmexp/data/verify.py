"""Reading every image and video of a data set once, before anything is trained on them."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from vlmexp.data.images import MediaError, picture
from vlmexp.data.limits import budget
from vlmexp.data.pictures import HEAD, identity, look, stored_name
from vlmexp.data.regular_files import Unopened, content_digest, open_regular
from vlmexp.data.videos import check_video

_LOOKED_AT = 2**20  # pixels of a large picture, for what it looks like
_SMALL = 2**28  # bytes of a file that cannot be used: of a larger one the content is not read only to know it again
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
        file, shows, seen, begun = root / path, b"", b"", time.monotonic()
        try:
            if kind == "video":
                check_video(file, video_library)
            else:
                with picture(file) as image:
                    shows, seen = identity(image.size, image.pieces()), look(image.within(_LOOKED_AT))
            found = _hash(kind, file, time.monotonic() - begun)
        except MediaError as raised:
            error, seen_last = MediaError(raised.reason, str(raised).replace(str(file), str(path))), stamp(file)
            is_small = seen_last is not None and seen_last[0] <= _SMALL
            return Verified(seen_last, content(file) if is_small else None, error)
        name = _stored_name(file, found) if path.is_absolute() else str(path)
        return Verified(stamp(file), found, None, name, shows or bytes.fromhex(found)[:16], seen)

    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(verified, media, media.values())
        return dict(zip(media, tqdm(found, description, total=len(media), unit=" files", leave=False), strict=True))


def _hash(kind: str, path: Path, spent: float) -> str:
    """SHA-256 of the bytes of a file that could be decoded, for which so many seconds are spent already."""
    most = budget.limits.decode_timeout_s
    try:
        return content_digest(path, budget.most_bytes, max(most - spent, most / 2))
    except Unopened as error:
        way_out = ": raise dataset.decode_timeout_s" if error.reason == "too slow" else ""
        raise MediaError(error.reason, f"The {kind} {path} {error}{way_out}.") from None
    except OSError:
        raise MediaError("missing", f"The {kind} {path} cannot be read any more.") from None


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
