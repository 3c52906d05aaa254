"""Programs of the system, by absolute path: from where the user's own environment has them, never from a run's.

A run may set environment variables for itself (`hydra.job.env_set`), PATH among them.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator

_path: str | None = None  # PATH as it was before a run; None outside of runs


@contextlib.contextmanager
def of_the_user() -> Iterator[None]:
    """For the length of the block programs are those of now, whatever PATH becomes in it."""
    global _path
    before, _path = _path, os.environ.get("PATH", os.defpath)
    try:
        yield
    finally:
        _path = before


def program(name: str) -> str:
    """The absolute path of a program; raises FileNotFoundError if there is none.

    Relative folders of PATH do not count: what lies in them depends on the working directory.
    """
    folders = filter(os.path.isabs, _users_path().split(os.pathsep))
    if (found := shutil.which(name, path=os.pathsep.join(folders))) is None:
        raise FileNotFoundError(f"there is no {name} on this machine")
    return found


@contextlib.contextmanager
def users_path() -> Iterator[None]:
    """Within the block a library that starts programs by their names finds the user's, too."""
    before = os.environ.get("PATH")
    os.environ["PATH"] = _users_path()
    try:
        yield
    finally:
        if before is None:
            del os.environ["PATH"]
        else:
            os.environ["PATH"] = before


def _users_path() -> str:
    return os.environ.get("PATH", os.defpath) if _path is None else _path
