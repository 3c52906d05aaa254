"""Arrays that are made once from prepared data and kept beside them, for all runs that ask for the same."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from vlmexp.data.garbage import spared
from vlmexp.files import digest

log = logging.getLogger(__name__)


def stored_array(folder: Path, name: str, key: Mapping[str, Any], make: Callable[[], np.ndarray]) -> np.ndarray:
    """The array that `make` returns, memory-mapped from `folder`, where it is written if it is not there.

    Of several processes that ask at the same time one makes it and the others wait. Where nothing can be written, every
    process makes its own.

    Args:
        key: everything that the array depends on, as JSON values; its hash is part of the file's name.
    """
    path = folder / f"{name}-{digest(key)[:20]}.npy"
    found = _read(path)
    if found is not None:
        return found
    try:
        folder.mkdir(exist_ok=True)
        lock = FileLock(path.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        log.debug("%s cannot be written (%s).", folder, error)
        return _made(make)
    try:
        found = _read(path)
        return _written(path, _made(make)) if found is None else found
    finally:
        lock.release()


def _made(make: Callable[[], np.ndarray]) -> np.ndarray:
    with spared():
        return make()


def _read(path: Path) -> np.ndarray | None:
    try:
        return np.load(path, mmap_mode="r")  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, EOFError) as error:
        log.warning("%s is damaged (%s): it is made again.", path, error)
        return None


def _written(path: Path, array: np.ndarray) -> np.ndarray:
    """Write the array under a temporary name, rename it and map it; the array itself where that fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            np.save(file, array)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        log.warning("%s could not be written (%s): the next run counts again.", path, error)
        temporary.unlink(missing_ok=True)
        return array
    found = _read(path)
    return array if found is None else found
