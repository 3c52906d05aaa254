"""Seals: whether what a sweep's directory has jobs run was put there by a client of this user.

A sweep's directory holds command lines, settings of a queue and a copy of the code, and stage=resume runs all of them.
What a client writes is sealed with a key that only its user can read, so one's own sweep is resumed as it was typed.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

from vlmexp.files import digest


def seal_of(value: Any) -> str | None:
    """The seal of a JSON value; None where the user's folder for such things cannot be written."""
    with contextlib.suppress(OSError):
        return _sealed(value, _key())
    return None


def is_ours(value: Any, seal: str | None) -> bool:
    """Whether this user has sealed the value."""
    with contextlib.suppress(OSError):
        return seal is not None and hmac.compare_digest(seal.encode(), _sealed(value, _key()).encode())
    return False


def _sealed(value: Any, key: bytes) -> str:
    return hmac.new(key, digest(value).encode(), "sha256").hexdigest()


def _key() -> bytes:
    """The user's key, made when it is needed first."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    path = state / "vlmexp" / "key"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
            file.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):  # another client was faster
            os.link(temporary, path)
        temporary.unlink()
    return path.read_bytes()
