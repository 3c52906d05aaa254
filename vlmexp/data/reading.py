"""From the rows of a source to tables of those that can be used, and a list of those that cannot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from vlmexp.data.example import MEDIA_ROLES, check_columns
from vlmexp.data.rows import BadSample, MediaStore, TableBuilder, stored_row
from vlmexp.data.sources import Rows
from vlmexp.data.splits import media_groups
from vlmexp.data.verify import Verified

_ROWS_FOR_COLUMNS = 1000  # a column that none of so many rows has does not exist


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

    def rows(self, rows: Rows, split: str) -> pa.Table:
        """The rows of a split that can be used, as far as their text tells.

        Raises:
            UserError: a role's column is in none of the first rows.
        """
        builder, seen, count = TableBuilder(), set[str](), 0
        for original in tqdm(rows, f"prepare {self._name} {split}", unit=" rows", leave=False):
            if count < _ROWS_FOR_COLUMNS:
                seen |= original.keys()
            elif count == _ROWS_FOR_COLUMNS:
                check_columns(self._columns, [], seen, split)
            given = (original[name] for name in ("id", "question_id") if original.get(name) is not None)
            row = str(next(given, f"{split}-{count}"))
            count += 1
            try:
                builder.add(stored_row(original, self._columns, self._required, self.store) | {"id": row})
            except BadSample as error:
                self._add(split, row, error.column, None, error.reason, str(error))
        if 0 < count <= _ROWS_FOR_COLUMNS:
            check_columns(self._columns, [], seen, split)
        return builder.table()

    def without_bad_media(self, table: pa.Table, split: str, files: Mapping[Path, Verified]) -> pa.Table:
        """The rows all of whose media could be decoded."""
        keep = np.ones(len(table), bool)
        for column in media_columns(self._columns):
            for index, paths in enumerate(_values(table, column)):
                for path in paths or ():
                    error = files[Path(path)].error
                    if error is not None and keep[index]:
                        keep[index] = False
                        self._add(split, table["id"][index].as_py(), column, path, error.reason, str(error))
        return table.filter(pa.array(keep))

    def _add(self, split: str, row: str, column: str | None, path: str | None, reason: str, error: str) -> None:
        place = f"split {split}, row {row}" + (f", column {column}" if column else "")
        self.bad.append(
            {"split": split, "id": row, "column": column, "path": path, "reason": reason, "error": f"{place}: {error}"}
        )


def media_columns(columns: Mapping[str, str | None]) -> tuple[str, ...]:
    """The columns that hold images or videos."""
    return tuple(column for role in MEDIA_ROLES if (column := columns.get(role)))


def groups(table: pa.Table, columns: Mapping[str, str | None]) -> list[str]:
    """For each row a name that it shares with every row that has some of the same media."""
    return media_groups([paths or [f"row {number}"] for number, paths in enumerate(_media(table, columns))])


def without_media(table: pa.Table, columns: Mapping[str, str | None]) -> int:
    """How many rows have neither an image nor a video."""
    return sum(not paths for paths in _media(table, columns))


def _media(table: pa.Table, columns: Mapping[str, str | None]) -> list[list[str]]:
    """The paths of all media of each row."""
    found: list[list[str]] = [[] for _ in range(len(table))]
    for column in media_columns(columns):
        for row, paths in zip(found, _values(table, column), strict=True):
            row += paths or []
    return found


def _values(table: pa.Table, column: str) -> list[list[str] | None]:
    return table[column].to_pylist() if column in table.column_names else [None] * len(table)
