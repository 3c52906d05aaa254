"""How large and how deep a row is, and what is too much: some rows would take minutes, or memory without end."""

from __future__ import annotations

import marshal
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MOST_COLUMNS = 10_000  # of a split
MOST_VALUES = 1_000_000  # in a row, all that is inside of lists and objects included
MOST_CHARACTERS = 2**26  # of a row as text, and of all its texts
LONGEST_TEXT = 2**24  # characters; an image in base64 may be longer
DEEPEST = 64  # levels of lists and objects in each other
_SMALL = 2**16  # bytes of a row, packed
_SIZED = (str, bytes, list, tuple, dict)
ATOMS = frozenset((str, int, float, bool, type(None)))  # types of nearly all values: others take their time to be told
MOST_FIELDS = 1_000  # of the objects in a column, of all its rows together


@dataclass
class RowShape:
    """What there is in a row; of values beyond a limit not all are counted.

    Attributes:
        characters: of all texts; of a small row at most so many.
        flaw: the end of a sentence about what there is too much of; None: nothing.
        column: where.
    """

    characters: int = 0
    values: int = 0
    flaw: str | None = None
    column: str | None = None


def row_shape(row: Mapping[str, Any], media_columns: Collection[str]) -> RowShape:
    """What there is in a row as a source gives it."""
    shape = RowShape()
    if len(row) > MOST_COLUMNS:
        shape.flaw = f"the row has {len(row):,} columns, more than {MOST_COLUMNS:,}"
        return shape
    if small := _small_size(row):
        return RowShape(small)
    for column, value in row.items():
        if isinstance(value, _SIZED):
            shape.flaw = _count(value, shape, LONGEST_TEXT if column not in media_columns else MOST_CHARACTERS)
        if shape.flaw is not None:
            shape.column = str(column)[:100]
            break
    return shape


def _small_size(row: Mapping[str, Any]) -> int:
    """Bytes of a row that is certainly within the limits, packed; 0 for any other.

    A character, a value and a level take a byte or more, and every list or object one that says what it is.
    """
    try:
        packed = marshal.dumps([value for value in row.values() if not isinstance(value, Path)], 2)
    except ValueError:  # it does not know such a value, or too many levels
        return 0
    levels = packed.count(b"[") + packed.count(b"{") + packed.count(b"(")
    return len(packed) if len(packed) <= _SMALL and levels <= DEEPEST else 0


def _count(value: Any, shape: RowShape, longest: int) -> str | None:
    """Add what is in a value; returns what it has too much of."""
    level, depth = [value], 0
    while level:
        inner = list[Any]()
        for item in level:
            if isinstance(item, str):
                if len(item) > longest:
                    return f"a text has {len(item):,} characters, more than {longest:,}"
                shape.characters += len(item)
            elif isinstance(item, bytes):
                shape.characters += len(item)
            else:
                shape.values += len(item)
                if shape.values > MOST_VALUES:
                    return f"there are more than {MOST_VALUES:,} values in the row"
                items = (*item.keys(), *item.values()) if isinstance(item, dict) else item
                inner += [each for each in items if isinstance(each, _SIZED)]
        level, depth = inner, depth + 1
        if depth > DEEPEST + 1:
            return f"it is nested too deeply, more than {DEEPEST} levels"
    return None


def has_many_fields(values: Collection[Any]) -> bool:
    """Whether the objects in these values have more different fields than a column may have."""
    fields, level = set[Any](), [value for value in values if type(value) not in ATOMS]
    while level and len(fields) <= MOST_FIELDS:
        inner = list[Any]()
        for item in level:
            if isinstance(item, dict):
                fields.update(item)
                inner += [each for each in item.values() if type(each) not in ATOMS]
            elif isinstance(item, (list, tuple)):
                inner += [each for each in item if type(each) not in ATOMS]
        level = inner
    return len(fields) > MOST_FIELDS
