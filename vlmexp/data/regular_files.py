"""Opening files that data name: regular ones that end, whatever a name leads to.

A name may lead to a device that never ends, a pipe that nobody writes to, or a file that the kernel makes up: it says
that it is regular and waits for something to happen. Nothing is read beyond the size that a file had when it was
opened, so that one that grows has an end, too.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import itertools
import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BUFFER = 2**16  # bytes
_BLOCK = 2**20  # bytes
_LARGE = 2**26  # bytes; a smaller file is read before a clock is looked at
_HOLE = 2**30  # bytes
_PARTS = 10_000  # of a file that are looked at; nobody writes so many by breaking off
_KINDS = ((stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"))
_MADE_UP = {os.stat(name).st_dev for name in ("/proc", "/sys") if os.path.isdir(name)}  # file systems of the kernel


_read = io.BufferedReader.read


class Unopened(OSError):
    """A name that leads to no file to read: `reason` in a word or two, and the end of a sentence about it."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class _Ending(io.FileIO):
    """A file that ends where it did when it was opened."""

    def __init__(self, descriptor: int, end: int) -> None:
        super().__init__(descriptor, "rb")
        self._end = end

    def readinto(self, buffer: Any) -> int | None:
        view = memoryview(buffer).cast("B")
        return super().readinto(view[: max(0, self._end - self.tell())])

    def readall(self) -> bytes:
        return super().read(max(0, self._end - self.tell())) or b""


class Regular(io.BufferedReader):
    """A regular file, open for reading.

    Attributes:
        size: bytes, when it was opened.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        super().__init__(_Ending(descriptor, size), _BUFFER)
        self.size = size
        self._most: int | None = None
        self._given = 0
        self._content: bytes | None = None

    def allow(self, most: int | None) -> None:
        """Let `read` give so many bytes from now on, and then raise Unopened; None: any number."""
        self._most, self._given = most, 0

    def read(self, size: int | None = -1, /) -> bytes:
        found = _read(self, size)
        if self._most is not None:
            self._given += len(found)
            if self._given > self._most:
                raise Unopened("too large", f"has more than {self._most:,} bytes in front of its pixels")
        return found

    @property
    def is_small(self) -> bool:
        """Whether all of it may be in memory."""
        return self.size <= _BUFFER

    def content(self) -> bytes:
        """All of a small file, which is read once."""
        if self._content is None:
            self.seek(0)
            self._content = _read(self)
        return self._content

    def head(self, size: int) -> bytes:
        """Its first bytes."""
        if self._content is not None:
            return self._content[:size]
        self.seek(0)
        return _read(self, size)


def open_regular(path: Path | str) -> Regular:
    """Open a file for reading in binary, after all links.

    Raises:
        Unopened: there is none, it cannot be opened, or it is not a regular file.
    """
    try:
        _require_regular(os.stat(path).st_mode)  # before opening, which does something to some devices
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except (FileNotFoundError, NotADirectoryError):
        raise Unopened("missing", "does not exist") from None
    except Unopened:
        raise
    except (OSError, ValueError) as error:  # a loop of links, a name too long or with a null character
        reason = error.strerror if isinstance(error, OSError) else f"{type(error).__name__} {error}"
        raise Unopened("missing", f"cannot be looked at: {reason}") from None
    try:
        found = os.fstat(descriptor)
        _require_regular(found.st_mode)  # another may lie there by now
        if found.st_dev in _MADE_UP:
            raise Unopened("not a file", "is a file of the kernel's and not one that is stored")
        return Regular(descriptor, found.st_size)
    except BaseException:
        os.close(descriptor)
        raise


def require_stored(file: Regular) -> None:
    """Raise Unopened for a file that is for the most part a hole, which costs nothing to make and minutes to read.

    Files of pixels may have holes of their own where a file system stores no zeros; these are smaller.
    """
    found = os.fstat(file.fileno())
    if found.st_size - 512 * found.st_blocks <= _HOLE:
        return
    stored = sum(end - start for start, end in itertools.islice(_stored_parts(file.fileno(), file.size), _PARTS))
    if file.size - stored > max(_HOLE, file.size // 2):
        raise Unopened(
            "damaged",
            f"has {file.size:,} bytes, of which {stored:,} were ever written, as if a download had broken off: fetch "
            "it again",
        )


def _stored_parts(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    end = 0
    with contextlib.suppress(OSError):  # there is no more
        while end < size:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
            yield start, end


def content_digest(path: Path | str, most: int | None = None, seconds: float | None = None) -> str:
    """SHA-256 of a file's bytes.

    Args:
        most: bytes; a file that has more is not read, nor one that is for the most part a hole.
        seconds: for reading it; None: any number.

    Raises:
        Unopened: it is no regular file, too large, or takes too long.
        OSError: it cannot be read.
    """
    with open_regular(path) as file:
        if most is not None and file.size > most:
            raise Unopened("too large", f"has {file.size:,} bytes, more than {most:,}")
        if most is not None:
            require_stored(file)
        return digest_of(file, seconds)


def digest_of(file: Regular, seconds: float | None = None) -> str:
    """SHA-256 of the bytes of an open file, from its beginning.

    Args:
        seconds: for reading it; None: any number.

    Raises:
        Unopened: it takes too long.
        OSError: it cannot be read.
    """
    if file.is_small:
        return hashlib.sha256(file.content()).hexdigest()
    file.seek(0)
    if seconds is not None and file.size >= _LARGE:
        return _timed_digest(file, seconds)
    return hashlib.file_digest(file.raw, "sha256").hexdigest()  # type: ignore[arg-type]


def _timed_digest(file: Regular, seconds: float) -> str:
    found, end, buffer = hashlib.sha256(), time.monotonic() + seconds, memoryview(bytearray(_BLOCK))
    while count := file.raw.readinto(buffer):
        found.update(buffer[:count])
        if time.monotonic() > end:
            raise Unopened("too slow", f"has {file.size:,} bytes, which take longer than {seconds:.0f} s to read")
    return found.hexdigest()


def _require_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        what = next((name for is_one, name in _KINDS if is_one(mode)), "device")
        raise Unopened("not a file", f"is a {what} and not a file")
