"""From the rows of a source to those that can be used, and a list of those that cannot."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlmexp.data.example import MEDIA_ROLES, check_columns
from vlmexp.data.row_chunks import RowChunks
from vlmexp.data.rows import BadSample, MediaStore, stored_row
from vlmexp.data.sources import Rows
from vlmexp.data.splits import media_groups
from vlmexp.data.verify import Verified

_ROWS_FOR_COLUMNS = 1000  # a required column that none of so many rows has does not exist


class Reading:
    """Reads the splits of one data set.

    Attributes:
        bad: for every row that cannot be used: split, id, column, path, reason, error.
    """

    def __init__(
        self, name: str, columns: Mapping[str, str | None], required: Sequence[str], store: MediaStore
    ) -> None:
        self._name, self._columns, self._required = name, columns, required
        self.store = store
        self.bad: list[dict[str, Any]] = []

    def rows(self, rows: Rows, split: str, folder: Path) -> RowChunks:
        """The rows of a split that can be used, as far as their text tells, in files in `folder`.

        Raises:
            UserError: a role's column is in no row, or that of a required role in none of the first.
        """
        chunks, seen, count = RowChunks(folder / split), set[str](), 0
        times = Counter[str]()  # how often an id was given so far
        for original in tqdm(rows, f"prepare {self._name} {split}", unit=" rows", leave=False):
            if count == _ROWS_FOR_COLUMNS:
                check_columns({role: self._columns.get(role) for role in self._required}, [], seen, split)
            seen |= original.keys()
            given = (original[name] for name in ("id", "question_id") if original.get(name) is not None)
            row = _unused(str(next(given, f"{split}-{count}")), times)
            count += 1
            try:
                chunks.add(stored_row(original, self._columns, self._required, self.store) | {"id": row})
            except BadSample as error:
                self._add(split, row, error.column, None, error.reason, str(error))
        if count:
            check_columns(self._columns, [], seen, split)
        return chunks

    def with_good_media(self, rows: RowChunks, split: str, files: Mapping[Path, Verified]) -> np.ndarray:
        """[rows] bool: those all of whose media could be decoded."""
        keep = np.ones(len(rows), bool)
        bad = {str(path): file.error for path, file in files.items() if file.error is not None}
        for column in media_columns(self._columns) if bad else ():
            index = 0
            for table in rows.tables("id", column):
                for row, paths in zip(table["id"].to_pylist(), _values(table, column), strict=True):
                    path = next((path for path in paths or () if path in bad), None)
                    if path is not None and keep[index]:
                        keep[index] = False
                        self._add(split, row, column, path, bad[path].reason, str(bad[path]))
                    index += 1
        return keep

    def _add(self, split: str, row: str, column: str | None, path: str | None, reason: str, error: str) -> None:
        place = f"split {split}, row {row}" + (f", column {column}" if column else "")
        self.bad.append(
            {"split": split, "id": row, "column": column, "path": path, "reason": reason, "error": f"{place}: {error}"}
        )


def _unused(name: str, times: Counter[str]) -> str:
    """The name, or, where an earlier row has it, the name with a number behind it: answers are kept by id."""
    row = name
    while times[row]:
        times[name] += 1
        row = f"{name}-{times[name]}"
    times[row] += 1
    return row


def media_columns(columns: Mapping[str, str | None]) -> tuple[str, ...]:
    """The columns that hold images or videos."""
    return tuple(column for role in MEDIA_ROLES if (column := columns.get(role)))


def groups(rows: RowChunks, keep: np.ndarray, columns: Mapping[str, str | None]) -> list[str]:
    """For each row to keep a name that it shares with every such row that has some of the same media."""
    media = enumerate(_media(rows, keep, columns))
    return media_groups([paths or (f"row {number}",) for number, paths in media])


def without_media(rows: RowChunks, keep: np.ndarray, columns: Mapping[str, str | None]) -> int:
    """How many rows to keep have neither an image nor a video."""
    return sum(not paths for paths in _media(rows, keep, columns))


def _media(rows: RowChunks, keep: np.ndarray, columns: Mapping[str, str | None]) -> Iterator[tuple[str, ...]]:
    """The paths of all media of each row to keep; rows with the same media give the same tuple."""
    names, known, start = media_columns(columns), dict[tuple[str, ...], tuple[str, ...]](), 0
    for table in rows.tables("id", *names):
        values = zip(*(_values(table, name) for name in names), strict=True) if names else [()] * len(table)
        for kept, row in zip(keep[start : start + len(table)].tolist(), values, strict=True):
            if kept:
                paths = tuple(path for column in row for path in column or ())
                yield known.setdefault(paths, paths)
        start += len(table)


def _values(table: Any, column: str) -> list[list[str] | None]:
    return table[column].to_pylist() if column in table.column_names else [None] * len(table)
