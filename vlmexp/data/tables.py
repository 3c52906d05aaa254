"""Rows of a jsonl, json, csv, tsv or parquet file, one at a time and as they stand: no type is guessed."""

from __future__ import annotations

import contextlib
import csv
import io
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from vlmexp.data.json_rows import json_rows, parsed
from vlmexp.data.regular_files import Unopened, open_regular, require_stored
from vlmexp.data.row_shape import MOST_CHARACTERS, MOST_COLUMNS
from vlmexp.data.table_process import parquet_rows

_LARGE = 2**26  # bytes, which are hashed in the time that a first row takes
Row = dict[str, Any]


def read_rows(path: Path, may_be_empty: bool = False) -> Generator[Row]:
    """Yield the rows of a file whose ending says what it is.

    Raises:
        ValueError: no rows where there must be some, or a content that is not what the ending says; with the line where
            it can be told.
        KeyError: the ending is not one of READERS.
    """
    empty = True
    try:
        for row in READERS[path.suffix.lower()](path):
            empty = False
            yield row
    except Unopened as error:
        raise ValueError(f"it {error}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not in UTF-8 (byte {error.start})") from None
    if empty and not may_be_empty:
        raise ValueError("it has no rows")


def require_readable(path: Path, most: int) -> None:
    """Raise a ValueError for a large table whose first row cannot be read, which is known in a moment.

    Args:
        most: bytes; a larger file is not looked at.

    Raises:
        Unopened: it is no file, or for the most part a hole.
    """
    with open_regular(path) as file:
        is_large = _LARGE < file.size <= most
        if is_large:
            require_stored(file)
    if is_large and path.suffix.lower() in READERS:
        with contextlib.closing(read_rows(path, may_be_empty=True)) as rows:
            next(rows, None)


def _jsonl(path: Path) -> Iterator[Row]:
    with _text(path) as file:
        for number, line in _lines(file):
            if line.strip():
                yield _object(parsed(line, f"line {number}"), f"line {number}")


def _json(path: Path) -> Iterator[Row]:
    """A list of rows, an object that holds one list of rows, a single row, or, as in jsonl, a row a line."""
    if _has_a_row_a_line(path):
        yield from _jsonl(path)
        return
    with _text(path) as file:
        for number, row in json_rows(file):
            yield _object(row, f"row {number}")


def _has_a_row_a_line(path: Path) -> bool:
    """Whether the first line is an object and there are more lines, or there is nothing."""
    with _text(path) as file:
        lines = (line.strip() for line in iter(partial(file.readline, MOST_CHARACTERS), ""))
        first = next(filter(None, lines), "")
        return not first or (first.startswith("{") and _is_json(first) and any(lines))


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    """Every value is text, and an empty one stays empty."""
    csv.field_size_limit(MOST_CHARACTERS)
    with _text(path, newline="") as file:
        reader = csv.DictReader((line for _, line in _lines(file)), strict=True, delimiter=delimiter)
        try:
            names = reader.fieldnames or ()
            if len(names) > MOST_COLUMNS:
                raise ValueError(f"its first line names {len(names):,} columns, more than {MOST_COLUMNS:,}")
            twice = [name for name, count in Counter(names).items() if name and count > 1]
            if twice:
                raise ValueError(f"it has several columns with the name {twice[0]!r}")
            for row in reader:
                if None in row or None in row.values():
                    raise ValueError(f"line {reader.line_num} has not as many values as the first line has names")
                yield row
        except csv.Error as error:
            raise ValueError(f"line {reader.line_num}: {error}") from None


def _tsv(path: Path) -> Iterator[Row]:
    return _csv(path, "\t")


def _parquet(path: Path) -> Iterator[Row]:
    open_regular(path).close()
    yield from parquet_rows(path)


def _text(path: Path, newline: str | None = None) -> TextIO:
    return io.TextIOWrapper(open_regular(path), encoding="utf-8-sig", newline=newline)


def _lines(file: TextIO) -> Iterator[tuple[int, str]]:
    """Number, from 1 on, and text of each line."""
    for number, line in enumerate(iter(partial(file.readline, MOST_CHARACTERS + 1), ""), start=1):
        if len(line) > MOST_CHARACTERS:
            raise ValueError(f"line {number} has more than {MOST_CHARACTERS:,} characters")
        yield number, line


def _is_json(text: str) -> bool:
    try:
        parsed(text, "it")
    except ValueError:
        return False
    return True


def _object(value: Any, place: str) -> Row:
    if not isinstance(value, dict):
        raise ValueError(f"{place} is a {type(value).__name__} and no object of column: value")
    return value


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet,
}  # fmt: skip
