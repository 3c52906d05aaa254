"""Writing files so that a reader sees the old content or the new one, and never half of either.

A target has one writer at a time: run directories and prepared data are locked by those who write them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vlmexp.errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write `text` under a temporary name in the same folder, then rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _partial(path)
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
    """Replace the file by one JSON value a line."""
    write_text(path, "".join(json_text(row) + "\n" for row in rows))


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


def read_jsonl(path: Path) -> list[Any]:
    """Rows of a file that may still be growing: a last line without its end is left out. Raises DamagedFile."""
    if not path.exists():
        return []
    try:
        text = path.read_text(encoding="utf-8")
        # Not splitlines(): a text may hold U+2028 and other ends of lines, which JSON leaves as they are.
        return [_parsed(line) for line in text.split("\n")[:-1]]
    except ValueError as error:
        raise DamagedFile(f"{path} is damaged ({error}): restore it from a copy.") from None


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
    temporary = _partial(path)
    shutil.rmtree(temporary, ignore_errors=True)  # of a process that was killed here
    temporary.mkdir(parents=True)
    try:
        yield temporary
        open_to_umask(temporary)
        if path.exists():
            shutil.rmtree(path)
        temporary.replace(path)
    finally:
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
    return json.loads(text, parse_constant=lambda name: None)


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
