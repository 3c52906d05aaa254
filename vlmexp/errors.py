"""Errors for people: one sentence with the value, the constraint and the way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can put right. The command line prints its text and no traceback."""

    exit_code = 2


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
    return UserError(f"{what} {name!r} does not exist{closest(name, known) or '.'} There are: {', '.join(known)}.")
