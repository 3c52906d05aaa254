"""Errors for people: one sentence with the value, the constraint and the way out."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# From torch.load's first words to what the unpickler says, and any other clause about its option; not an option of a
# command line, which somebody has typed.
_PICKLE_ADVICE = re.compile(r"Weights only load failed\..*?(?=WeightsUnpickler error|$)\s*", re.DOTALL)
_UNSAFE = re.compile(r"[^.:\n]*(?<![.{\w])weights_only[^.\n]*\.?\s*")
_SHOWN = 160  # letters of a value


class UserError(Exception):
    """Something the user can put right. The command line prints its text and no traceback."""

    exit_code = 2


def shown(value: object) -> str:
    """A value for a sentence, in which nobody wants to read all of a text that is too long."""
    said = str(value)
    return said if len(said) <= _SHOWN else f"{said[: _SHOWN // 2]}…{said[-_SHOWN // 2 :]}"


def without_advice(text: str) -> str:
    """A library's text without its advice to load a file in a way that may run the code in it (torch's)."""
    text = _PICKLE_ADVICE.sub("The file is damaged, or a pickle of more than tensors, which is never loaded. ", text)
    return _UNSAFE.sub("", text)


def closest(name: str, known: Iterable[str]) -> str:
    """`"; did you mean 'X'?"` if a known name is close to `name`, else nothing."""
    known = list(known)
    matches = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not matches:  # 'rr' is no close match of 'r' by ratio, but it plainly starts with it
        matches = sorted((k for k in known if k and (name.startswith(k) or k.startswith(name))), key=len)[:1]
    return f"; did you mean {matches[0]!r}?" if matches else ""


def unknown(what: str, name: str, known: Iterable[str]) -> UserError:
    """An unknown name: the name, the nearest one and the list."""
    known = sorted(known)
    return UserError(
        f"{what} {shown(name)!r} does not exist{closest(name, known) or '.'} There are: {', '.join(known)}."
    )
