"""What the command line prints on: any terminal, a pipe that may close at any moment, or nothing at all.

Much of what is printed was written by others: data, checkpoints, run directories, errors about them. None of it may
steer the terminal. So all that goes to the two streams is text, in which control characters are shown by their codes,
with two exceptions that are ours: the styles of vlmexp.screen, and a progress bar's way back to the begin of its line.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import logging
import os
import re
import signal
import sys
from collections.abc import Iterable, Iterator
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

# Control characters of ASCII and of ISO 6429, ends of lines that are none here, overrides of the direction of writing,
# and halves of characters.
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb\ud800-\udfff]")
_COLOURS = re.compile(r"\x1b\[[0-9;:]*[mK]")  # of libraries: left out, as they are no content
_UP = re.compile(r"(\x1b\[A)+")


class LogFormat(logging.Formatter):
    """Records as text that steers no terminal, however the log is looked at, and without secrets.

    An error of a library may hold one, in its traceback too.
    """

    def format(self, record: logging.LogRecord) -> str:
        return visible(redacted(super().format(record)))


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


def visible(text: str) -> str:
    r"""The text with every character that steers a terminal, or turns its letters around, as its code: `\x1b`.

    Left are tabs, the ends of lines, and the joiners and marks that scripts are written with.
    """
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text.replace("\r\n", "\n"))


def end_with_the_pipe() -> None:
    """End without a word once nobody reads what is printed, as Unix tools do: for `--help | head` and the like."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    _wrap(_Stream)


def outlast_the_pipe() -> None:
    """Go on when nobody reads any more what is printed: a run and the client of a sweep have other things to do."""
    _wrap(_Lasting)


def _wrap(kind: type[_Stream]) -> None:
    out: Any
    err: Any
    out, err = kind(sys.stdout), kind(sys.stderr)
    sys.stdout, sys.stderr = out, err


class _Stream:
    """A stream to which nothing but text is written, and the moves of a progress bar (tqdm's).

    A bar begins its line anew with a carriage return; one below others goes up with a write of its own.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._may_return = True  # in an empty line, and in that of a bar
        self._in_bar = False

    @property
    def styled(self) -> _Raw:
        """The same stream for what has been made visible already and styled since."""
        return _Raw(self)

    def write(self, text: str) -> int:
        if self._in_bar and _UP.fullmatch(text):
            self.pass_on(text)
            return len(text)
        returns = text.startswith("\r") and not text.startswith("\r\n") and self._may_return
        self.pass_on("\r" * returns + visible(_COLOURS.sub("", text[returns:])))
        if text:
            self._may_return = returns or text.endswith("\n")
            self._in_bar = returns
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def pass_on(self, text: str) -> None:
        """Write as it is, but for secrets."""
        self._stream.write(redacted(text))

    def flush(self) -> None:
        self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Raw:
    def __init__(self, stream: _Stream) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        self._stream.pass_on(text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Lasting(_Stream):
    """A stream that goes on when what it writes to is gone: what is printed then is lost, and nothing else."""

    def pass_on(self, text: str) -> None:
        with self._survived():
            super().pass_on(text)

    def flush(self) -> None:
        with self._survived():
            super().flush()

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
