"""Rows as a source gives them to rows as they are stored: texts, lists of answers, turns and media's paths."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np

from vlmexp.data.boxes import boxes_in
from vlmexp.data.conversation import BadConversation, read_conversation
from vlmexp.data.example import ANSWER_ROLES, BOX, CONVERSATION, MEDIA_ROLES, answer_texts, is_missing, plain_text
from vlmexp.data.pictures import HEAD, stored_name
from vlmexp.data.row_shape import ATOMS
from vlmexp.data.turns import stored_turns
from vlmexp.errors import UserError

_FILES = (bytes, Path)


class BadSample(UserError):
    """A row that cannot be used: by its text, or by a media value that names no file."""

    def __init__(self, reason: str, column: str | None, text: str) -> None:
        super().__init__(text)
        self.reason, self.column = reason, column


class MediaStore:
    """Stores encoded media under the hash of their bytes, so that each distinct one is stored once.

    Attributes:
        kinds: every file that a row refers to -> image or video.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kinds: dict[Path, str] = {}
        self._last: tuple[Any, str, list[str]] | None = None  # value, kind and paths: rows often show what the last did
        (root / "media").mkdir()

    def paths(self, value: Any, kind: str) -> list[str]:
        """The paths to keep in a row: relative to the root for bytes and base64, which are stored, absolute for files.

        Raises:
            ValueError: the value, or one in the list, is neither a path nor encoded bytes.
        """
        if self._last is not None and value is self._last[0] and kind == self._last[1]:
            return self._last[2]
        if is_missing(value) or value == "":
            return []
        found = [self._path(item, kind) for item in (value if isinstance(value, list | tuple) else [value])]
        if isinstance(value, Path):  # nobody can change one
            self._last = value, kind, found
        return found

    def _path(self, value: Any, kind: str) -> str:
        if isinstance(value, dict):  # how the datasets library and parquet files hold an encoded file
            value = value["bytes"] if value.get("bytes") is not None else value.get("path")
        if isinstance(value, str) and value.startswith("data:"):
            value = _decoded(value)
        if is_missing(value) or value == "":
            raise ValueError(f"there is nothing where the path of the {kind} should be")
        if isinstance(value, str) and "://" in value:
            raise ValueError(f"{value} is an address: download the file and name its path")
        if isinstance(value, bytes):
            path = Path(stored_name(hashlib.sha256(value).hexdigest(), value[:HEAD]))
            if not (self.root / path).exists():
                (self.root / path).write_bytes(value)
        elif isinstance(value, str | Path):
            text = str(value)
            if not text.isascii() and text != text.encode(errors="replace").decode():
                raise ValueError(f"{text!a} is not in UTF-8: rename the file")
            # Path's own raises for a ~ of somebody unknown.
            whole = value if isinstance(value, Path) and value.is_absolute() else Path(os.path.expanduser(value))
            path = whole.absolute()
        else:
            raise ValueError(f"{repr(value)[:60]} is a {type(value).__name__} and no path")
        self.kinds[path] = kind
        return str(path)


def stored_row(
    row: Mapping[str, Any],
    columns: Mapping[str, str | None],
    required: Sequence[str],
    store: MediaStore,
    box_form: str = "xywh",
) -> dict[str, Any]:
    """The row to store.

    Args:
        columns: role -> column.
        required: roles whose text must not be empty.
        box_form: what the numbers of a box are, see vlmexp.data.boxes.

    Raises:
        BadSample: a required text is empty, a text is no text, a media value is no path and no bytes, a conversation is
            none to learn from, or a box is none in one image.
    """
    # Encoded files in a column without a role have no use.
    roles = columns.values()
    stored = {
        name: value if type(value) in ATOMS or name in roles else _plain(value)
        for name, value in row.items()
        if type(value) in ATOMS or not _is_file(value)
    }
    for role, column in columns.items():
        if column is None or role == CONVERSATION:
            continue
        value = row.get(column)
        try:
            stored[column] = (
                store.paths(value, role)
                if role in MEDIA_ROLES
                else answer_texts(value, keep_empty=role == "answer")
                if role in ANSWER_ROLES
                else boxes_in(value, box_form)
                if role == BOX
                else plain_text(value)
            )
        except ValueError as error:
            raise BadSample(
                f"no {role}" if role in (*MEDIA_ROLES, BOX) else f"{role} is no text", column, f"{error}."
            ) from None
        text = stored[column]
        if role in required and not (text.strip() if isinstance(text, str) else text):
            raise BadSample(f"empty {role}", column, f"the {role} is empty.")
    if (column := columns.get(BOX)) and (count := len(stored.get(columns.get("image") or "", ()))) != 1:
        raise BadSample("no image of the box", column, f"there are {count} images, and a box needs one to be in.")
    if column := columns.get(CONVERSATION):
        media = {role: len(stored[name]) for role in MEDIA_ROLES if (name := columns.get(role))}
        try:
            turns = read_conversation(row.get(column), media, answered=CONVERSATION in required)
            stored[column] = stored_turns(turns)
        except BadConversation as error:
            raise BadSample(error.reason, column, f"{error}.") from None
    return stored


def _plain(value: Any) -> Any:
    """A value that JSON can hold: times as ISO text, durations in seconds, decimals as text, arrays as lists."""
    if type(value) in ATOMS:
        return value
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, date | time):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return _plain(value.tolist()) if isinstance(value, np.ndarray | np.generic) else value


def _decoded(address: str) -> bytes:
    """The file in a `data:image/png;base64,...` address."""
    head, _, content = address.partition(",")
    if not head.endswith(";base64"):
        raise ValueError(f"{address[:60]!r} is a data: address that is not in base64")
    try:
        return base64.b64decode(content)
    except ValueError as error:
        raise ValueError(f"{address[:60]!r} is no base64: {error}") from None


def _is_file(value: Any) -> bool:
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, _FILES) or (isinstance(first, dict) and "bytes" in first)
