"""What the command line prints on: any terminal, a pipe that may close at any moment, or nothing at all."""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import signal
import sys
from collections.abc import Iterator
from typing import Any, TextIO

from vlmexp.confidential import redacted

_LEAST_COLUMNS = 10
# The reader of a pipe, a terminal, the room for a file: what is printed has nowhere to go any more.
_GONE = (errno.EPIPE, errno.EIO, errno.ENOSPC, errno.EDQUOT)
# Letters of our own tables and texts, for encodings that have none of them.
_PLAIN = {
    "…": "...", "\u2013": "-", "\u2014": "-", "\u00b7": ".", "\u00d7": "x", "→": "->", "±": "+-",
    **dict.fromkeys("─━╌═", "-"), **dict.fromkeys("│┃║", "|"), **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┡┩╇╪╞╡╘╛╧", "+"),
    **dict.fromkeys("█▉▊▋▌▍▎▏", "#"),
}  # fmt: skip


def prepare() -> None:
    """Let nothing that is printed end the program: not a letter that the terminal lacks, nor streams that are closed.

    A letter is replaced by a plain one, or by its code, which loses nothing. Nor is anything printed into no columns.
    """
    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns) < _LEAST_COLUMNS:
        del os.environ["COLUMNS"]
    codecs.register_error("vlmexp", _replaced)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream: Any = getattr(sys, name)
        if stream is None:  # closed by whoever started us: a file of ours would take its number
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115
        elif number and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="vlmexp")


def end_with_the_pipe() -> None:
    """End without a word once nobody reads what is printed, as Unix tools do: for `--help | head` and the like."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)


def outlast_the_pipe() -> None:
    """Go on when nobody reads any more what is printed: a run and the client of a sweep have other things to do."""
    out: Any
    err: Any
    out, err = _Lasting(sys.stdout), _Lasting(sys.stderr)
    sys.stdout, sys.stderr = out, err


class _Lasting:
    """A stream that goes on when what it writes to is gone: what is printed then is lost, and nothing else."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with self._survived():
            self._stream.write(redacted(text))
        return len(text)

    def flush(self) -> None:
        with self._survived():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _survived(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in _GONE:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def _replaced(error: UnicodeError) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    known = "".join(_PLAIN.get(c, c.encode("ascii", "backslashreplace").decode()) for c in letters)
    return known, error.end
