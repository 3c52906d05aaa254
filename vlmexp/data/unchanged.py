"""Whether the files of prepared data are what they were. One that nobody has touched since is not read again.

A file that is changed in place may keep its size, and its time of change can be set; but not the time at which the file
system last changed what it knows of the file. A copy of the folder has new times and the same content: it is read
once, and the stamps that its files then have are kept.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from vlmexp.data.verify import WORKERS, content, stamp
from vlmexp.files import read_json

_TOGETHER = 1000  # stamps that are written at a time
_STAMPS = "stamps.json"  # name of a file -> its stamp (see `stamp`) when its content was read
Stamp = list[int] | None
_read_here: dict[Path, Mapping[str, Stamp]] = {}  # folder that cannot be written -> the same, by this process


def first_changed(folder: Path, hashes: Mapping[str, str | None]) -> str | None:
    """The first file with another content than it had; None if there is none.

    Args:
        hashes: file, absolute or relative to the folder -> how the SHA-256 of its content begins; None: it could not be
            read.
    """
    known, below = _known(folder), str(folder)
    stamps = {name: stamp(os.path.join(below, name)) for name in hashes}
    touched = [name for name, seen in stamps.items() if name not in known or known[name] != seen]
    if not touched:
        return None
    with ThreadPoolExecutor(WORKERS) as pool:
        found = pool.map(content, (folder / name for name in touched))
        bar = tqdm(found, f"check files of {folder.name}", total=len(touched), unit=" files", leave=False)
        changed = [name for name, now in zip(touched, bar, strict=True) if not _is(now, hashes[name])]
    remember(folder, {name: seen for name, seen in stamps.items() if name not in changed})
    return changed[0] if changed else None


def remember(folder: Path, stamps: Mapping[str, Stamp]) -> None:
    """Keep the stamps of files, taken when their content was read; in memory where nothing can be written."""
    temporary = folder / f".{_STAMPS}.{os.getpid()}"  # others may do the same at this moment
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(_pieces(stamps))
        temporary.replace(folder / _STAMPS)
    except OSError:
        _read_here[folder] = stamps
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _pieces(stamps: Mapping[str, Stamp]) -> Iterator[str]:
    """The text of the stamps as JSON: that of all at once takes many times its size."""
    rest, mark = iter(stamps.items()), "{"
    while some := dict(itertools.islice(rest, _TOGETHER)):
        yield mark + json.dumps(some)[1:-1]
        mark = ", "
    yield "}" if stamps else "{}"


def _known(folder: Path) -> Mapping[str, Stamp]:
    try:
        known = read_json(folder / _STAMPS)
    except (OSError, ValueError):  # of an earlier version, or damaged
        known = {}
    return {**(known if isinstance(known, dict) else {}), **_read_here.get(folder, {})}


def _is(now: str | None, before: str | None) -> bool:
    return now is None if before is None else now is not None and now.startswith(before)
