"""Disks that are full or may not be written: which path, how much is free, and the way out, in one sentence."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vlmexp.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "your quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EIO: "the disk did not take all of it",
}
_NAMES = {  # what no place on a disk can be called, and what stands in the way of one
    errno.ENAMETOOLONG: "the name is too long",
    errno.EILSEQ: "the file system takes no such letters in a name",
    errno.ELOOP: "its symbolic links lead nowhere",
    errno.ENOTDIR: "a part of it is a file and no folder",
    errno.EEXIST: "there is a file of this name",
}
# How safetensors and tokenizers, and Python's own collected errors, name the system's error.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[Errno (\d+)\]")
_TORCH_WRITER = ("inline_container.cc", "PytorchStreamWriter")  # torch.save tells that it failed and not why
_PROBE = 2**20  # bytes
_SHOWN = 160  # letters of a path
_UNITS = {"TiB": 2**40, "GiB": 2**30, "MiB": 2**20, "KiB": 2**10}


class StorageError(UserError):
    """Something could not be written; the text names it, and says how much is free and what to do."""

    exit_code = 1


class ImpossibleName(StorageError):
    """A place cannot be called so."""

    exit_code = 2


@contextlib.contextmanager
def writing(path: Path, way_out: str = "", needs: str = "") -> Iterator[None]:
    """Raise a StorageError for whatever says that the disk did not take what the block writes to `path`.

    Args:
        way_out: what else helps, such as "or set paths.data to another place".
        needs: what it takes, such as "a checkpoint takes about 3.2 GiB".
    """
    try:
        yield
    except Exception as error:
        number, named = _system_error(error), getattr(error, "filename", None)
        if number is None or number not in _REASONS or isinstance(error, UserError):
            raise
        if named is not None and _is_elsewhere(Path(named), number, path.parent):
            raise
        raise StorageError(_sentence(Path(named or path), number, way_out, needs)) from error


def storage_error(error: BaseException, folder: Path) -> StorageError | None:
    """What to say of an error that came while `folder` was written among others; None if it is not about a disk.

    An error that names no file is one of this folder if nothing can be written there now.
    """
    if isinstance(error, StorageError):
        return error
    number = _system_error(error)
    named = getattr(error, "filename", None)
    if number in _NAMES and isinstance(named, str):
        return ImpossibleName(
            f"{_shortened(named)} cannot be written or read: {_NAMES[number]}{_length(named, number)}. Choose another."
        )
    if number not in _REASONS or isinstance(error, UserError):
        return None
    if named is None:
        number = _refusal(folder)
    elif number is None or _is_elsewhere(Path(named), number, folder):
        return None
    if number is None or number not in _REASONS:
        return None
    return StorageError(_sentence(Path(named or folder), number, "", ""))


def require_folder(option: str, folder: str) -> None:
    """Raise a UserError if nothing can be written to the folder of an option; nothing is left of the attempt."""
    path = Path(os.path.abspath(folder))
    if folder.startswith("~"):
        raise ImpossibleName(f"{option}={folder}: nothing resolves its '~' here: write {os.path.expanduser(folder)}.")
    try:
        near = next(place for place in (path, *path.parents) if os.path.lexists(place))
        if not os.path.isdir(near):
            reason = _NAMES[errno.ELOOP] if os.path.islink(near) else f"{near} is no folder"
            raise NotADirectoryError(errno.ENOTDIR, reason)
        # All of it in a folder with a name of its own, so that nobody else's is there for a moment and gone again.
        with tempfile.TemporaryDirectory(dir=near) as attempt:
            (Path(attempt) / path.relative_to(near)).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a letter that no name has
        number, said = getattr(error, "errno", None), getattr(error, "strerror", None) or str(error)
        if number in _REASONS:
            raise StorageError(_sentence(path, number, f"or set {option} to another place", "")) from None
        if number == errno.ENAMETOOLONG:
            said = f"the name is too long{_length(str(path), number)}"
        raise ImpossibleName(
            f"{option}={_shortened(folder)}: no folder can be made there: {said[:1].lower()}{said[1:]}. Name another."
        ) from None


def require_file(option: str, file: str) -> None:
    """The same for a file that is written or written anew."""
    if os.path.isdir(file):
        raise ImpossibleName(f"{option}={file} is a folder: name a file.")
    require_folder(option, os.path.dirname(file) or ".")


def _shortened(path: str) -> str:
    """A path for a sentence, in which nobody wants to read all of a name that is too long."""
    return path if len(path) <= _SHOWN else f"{path[: _SHOWN // 2]}…{path[-_SHOWN // 2 :]}"


def _length(path: str, number: int) -> str:
    """How long a name is, and how long it may be."""
    if number != errno.ENAMETOOLONG:
        return ""
    near = _existing(Path(path))
    most, of_all = os.pathconf(near, "PC_NAME_MAX"), os.pathconf(near, "PC_PATH_MAX")
    longest = max(len(os.fsencode(part)) for part in Path(path).parts)
    have, may = (longest, most) if longest > most else (len(os.fsencode(path)), of_all - 1)
    return f" ({have:,} bytes; {near} takes {may:,})"


def size(count: int) -> str:
    """`3.2 GiB` for a number of bytes."""
    unit = next((unit for unit in ("TiB", "GiB", "MiB") if count >= _UNITS[unit]), "KiB")
    return f"{count / _UNITS[unit]:.1f} {unit}"


def free_bytes(path: Path) -> int | None:
    """Room on the file system of a path that need not exist yet; None where the system does not tell."""
    try:
        usage = shutil.disk_usage(_existing(path))
    except OSError:
        return None
    return usage.free if usage.total else None


def _is_elsewhere(named: Path, number: int, folder: Path) -> bool:
    """Whether an error may be of a file that was to be read, as it names one outside of the folder that is written."""
    return number not in (*_FULL, errno.EROFS) and not named.absolute().is_relative_to(folder.absolute())


def _system_error(error: BaseException) -> int | None:
    """The errno of an error, also where a library has put it into a text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    text = str(error)
    if found := _NUMBER.search(text):
        return int(found[1] or found[2])
    if isinstance(error, RuntimeError) and any(name in text for name in _TORCH_WRITER):
        return errno.EIO
    return None


def _sentence(path: Path, number: int, way_out: str, needs: str) -> str:
    near, free = _existing(path), free_bytes(path)
    if number == errno.EIO and free is not None and free < _PROBE:
        number = errno.ENOSPC
    if number in (*_FULL, errno.EIO):
        room = f"{size(free)} are free there" if free is not None else ""
        facts, do = ", ".join(filter(None, [room, needs])), "Make room"
    elif number == errno.EROFS:
        facts, do = "", f"Have the file system of {near} mounted for writing"
    else:
        facts, do = f"{near} is {_permission(near)}", "Get the permission to write there"
    reason = f"{_REASONS[number]} ({facts})" if facts else _REASONS[number]
    return f"{path} cannot be written: {reason}. {do}{f', {way_out}' if way_out else ''}."


def _permission(path: Path) -> str:
    about = path.stat()
    return f"{stat.filemode(about.st_mode)} of user {about.st_uid}, and this is user {os.geteuid()}"


def _existing(path: Path) -> Path:
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))


def _refusal(folder: Path) -> int | None:
    """The errno with which the file system refuses a megabyte in the folder."""
    probe = _existing(folder) / ".probe"
    try:
        with probe.open("wb") as file:
            file.write(b"\0" * _PROBE)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.errno
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)
    return None
