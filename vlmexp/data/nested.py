"""Columns inside of columns, by a dotted path: `qa.answers.text`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmexp.data.literals import parsed

ABSENT = object()
_DEEP = 4  # levels that are listed in a message


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """The value of a column, or of the place in it that a dotted path names; ABSENT: there is none.

    A column whose own name has the dots comes first. Of a list on the way, what the path names in each of its items is
    taken; a text on the way is read as JSON.

    >>> value_at({"qa": {"answers": [{"text": "red"}, {"text": "blue"}]}}, "qa.answers.text")
    ['red', 'blue']
    """
    if path in row:
        return row[path]
    names = path.split(".")
    for end in range(len(names) - 1, 0, -1):
        if (name := ".".join(names[:end])) in row:
            return _inside(row[name], ".".join(names[end:]))
    return ABSENT


def with_nested(row: dict[str, Any], columns: Sequence[str]) -> dict[str, Any]:
    """The row with a column for each dotted path that names something in it."""
    found = {column: value_at(row, column) for column in columns if column not in row}
    return row | {column: value for column, value in found.items() if value is not ABSENT}


def paths_in(row: Mapping[str, Any], levels: int = _DEEP) -> Iterator[str]:
    """The dotted paths of all that is inside of a row's columns."""
    for name, value in row.items():
        inner = value[0] if isinstance(value, list) and value else value
        if isinstance(inner, Mapping) and levels > 1:
            yield from (f"{name}.{path}" for path in paths_in(inner, levels - 1))
        else:
            yield name


def _inside(value: Any, path: str) -> Any:
    if not path or value is None:
        return value
    if isinstance(value, str):
        value = parsed(value)
    if isinstance(value, Mapping):
        return value_at(value, path)
    if not isinstance(value, list | tuple):
        return ABSENT
    found = [_inside(item, path) for item in value]
    if found and all(item is ABSENT for item in found):
        return ABSENT
    flat = [item if isinstance(item, list) else [item] for item in found if item is not ABSENT]
    return [item for items in flat for item in items]
