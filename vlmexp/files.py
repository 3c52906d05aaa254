"""Writing files so that a reader sees the old content or the new one, and never half of either.

A target has one writer at a time: run directories and prepared data are locked by those who write them. What is
renamed has reached the disk before, and the new name has when the function returns: after a power loss, too, there is
the old content or the new one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from vlmexp.errors import UserError

_SETTLING = 16  # files at a time: a disk writes down many at once nearly as fast as one
_BLOCK = 2**24  # bytes
_decoder = json.JSONDecoder(parse_constant=lambda name: None)  # to make one takes as long as to read a line


def write_text(path: Path, text: str) -> None:
    """Write `text` under a temporary name in the same folder, then rename it."""
    _write_pieces(path, [text])


def _write_pieces(path: Path, pieces: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _partial(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Have the disk keep a file, or a folder with all that is below it, before something else is built on it."""
    below = list(path.rglob("*")) if path.is_dir() else []
    with ThreadPoolExecutor(_SETTLING) as pool:
        list(pool.map(_sync, [place for place in below if place.is_file() and not place.is_symlink()]))
    for place in [*(folder for folder in reversed(below) if folder.is_dir() and not folder.is_symlink()), path]:
        _sync(place)


def replace(temporary: Path, path: Path) -> None:
    """Give a settled file or folder its name, and have the disk keep that it has it."""
    temporary.replace(path)
    _sync(path.parent)


def _sync(place: Path) -> None:
    number = os.open(place, os.O_RDONLY)
    try:
        os.fsync(number)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not place.is_dir():  # some systems sync no folders
            raise
    finally:
        os.close(number)


def append_text(path: Path, text: str, settled: bool = True) -> None:
    """Add whole lines to a file, behind its last whole line: what a full disk has left of another is taken out.

    Args:
        settled: have the disk keep them before this returns.
    """
    with path.open("a+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size and (file.seek(size - 1), file.read(1))[1] != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
        file.write(text.encode())
        file.flush()
        if settled:
            os.fsync(file.fileno())


def json_text(value: Any, **form: Any) -> str:
    """The value as JSON, which has neither NaN nor infinity: null stands for them.

    Args:
        form: further arguments of json.dumps, such as indent.
    """
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain, **form)
    except ValueError:
        return json.dumps(through_json(value), ensure_ascii=False, allow_nan=False, **form)


def write_json(path: Path, value: Any) -> None:
    """Replace the file by the value as indented JSON."""
    write_text(path, json_text(value, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Any]) -> None:
    """Replace the file by one JSON value a line; in memory is one of them."""
    _write_pieces(path, (json_text(row) + "\n" for row in rows))


def json_line(row: dict[str, Any]) -> str:
    """A row of numbers and text as a line of JSON, which has no NaN and no infinity: they become text ("nan")."""
    plain = {k: str(v) if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
    return json_text(plain) + "\n"


def through_json(value: Any) -> Any:
    """The value as it is when read back.

    Raises:
        TypeError, ValueError, RuntimeError: JSON has no such value.
    """
    return _parsed(json.dumps(value, default=_plain))


class DamagedFile(UserError, ValueError):
    """A file that was written whole and is not any more."""


def read_json(path: Path) -> Any:
    """The value of a JSON file; raises DamagedFile."""
    try:
        return _parsed(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged ({error}): restore it from a copy.") from None


def read_jsonl(path: Path, growing: bool = True) -> list[Any]:
    """Rows of a file. Raises DamagedFile.

    Args:
        growing: lines are still added to it: a last one without its end is left out, and there may be none yet.
    """
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        if not growing and not text.endswith("\n"):
            raise ValueError("its last line has no end")
        # Not splitlines(): a text may hold U+2028 and other ends of lines, which JSON leaves as they are.
        return [_parsed(line) for line in text.split("\n")[:-1]]
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged ({error}): restore it from a copy.") from None


def readable_rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """The objects of a file of lines that may be damaged, and how many lines are; none if there is no file."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    rows = []
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(_parsed(line.decode()))
    objects = [row for row in rows if isinstance(row, dict)]
    return objects, len(lines) - len(objects)


def is_locked(path: Path) -> bool:
    """Whether a process holds the lock of this file."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # there is none
        return False
    return False


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that takes the place of `path` when the block ends without an error."""
    if path.exists() and not path.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))  # somebody's file stays
    temporary, before = _partial(path), path.with_name(f".{path.name}.before")
    if before.exists() and not path.exists():  # of a process that was killed between the two names
        replace(before, path)
    shutil.rmtree(before, ignore_errors=True)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed here
    temporary.mkdir(parents=True)
    try:
        yield temporary
        open_to_umask(temporary)
        settle(temporary)
        if path.exists():
            path.replace(before)
        replace(temporary, path)
        shutil.rmtree(before, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no part of it ever stands under its name."""
    temporary = _partial(path)
    shutil.rmtree(temporary, ignore_errors=True)
    path.replace(temporary)
    shutil.rmtree(temporary, ignore_errors=True)


def open_to_umask(folder: Path) -> None:
    """Give the files below a folder the permissions that the umask leaves to new ones, as the folder itself has them.

    Libraries that write a temporary file first leave it to its owner alone: safetensors does so with weights.
    """
    for path in folder.rglob("*"):
        mode = path.parent.stat().st_mode & 0o666
        if path.is_file() and not path.is_symlink() and path.stat().st_mode & 0o666 != mode:
            path.chmod(mode)


def _parsed(text: str) -> Any:
    """The value of a JSON text; the NaN and Infinity that Python writes, and that earlier files hold, become None."""
    return _decoder.decode(text)


def _plain(value: Any) -> Any:
    """A NumPy or torch scalar as Python's own."""
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def _partial(path: Path) -> Path:
    # One name for each target, so that a killed process leaves nothing behind that the next one does not replace.
    return path.with_name(f".{path.name}.partial")


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def crc32(path: Path) -> int:
    """CRC-32 of a file's bytes, which tells of damage and of no ill will; several GB are read in a second."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            value = zlib.crc32(block, value)
    return value
