"""Rows of a jsonl, json, csv, tsv or parquet file, one at a time and as they stand: no type is guessed."""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path, may_be_empty: bool = False) -> Iterator[Row]:
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
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not in UTF-8 (byte {error.start})") from None
    if empty and not may_be_empty:
        raise ValueError("it has no rows")


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield _object(_parsed(line, f"line {number}"), f"line {number}")


def _json(path: Path) -> Iterator[Row]:
    """A list of rows, an object that holds one list of rows, a single row, or, as in jsonl, a row a line."""
    text = path.read_text(encoding="utf-8-sig").strip()
    first = text.partition("\n")[0]
    if not text or (first.startswith("{") and _is_json(first) and "\n" in text):
        yield from _jsonl(path)
        return
    content = _parsed(text, "it")
    if isinstance(content, dict):
        lists = [
            value for value in content.values() if isinstance(value, list) and isinstance(next(iter(value), None), dict)
        ]
        if len(lists) > 1:
            raise ValueError(f"it is an object with {len(lists)} lists of rows, and one is needed")
        content = lists[0] if lists else content
    for number, row in enumerate(content if isinstance(content, list) else [content]):
        yield _object(row, f"row {number}")


def _csv(path: Path, delimiter: str = ",") -> Iterator[Row]:
    """Every value is text, and an empty one stays empty."""
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True, delimiter=delimiter)
        try:
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if name and count > 1]
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
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(str(error).splitlines()[0]) from None


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place} is no JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError(f"{place} is nested too deeply") from None


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
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
