"""From the rows of a source to those that can be used, and a list of those that cannot."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from vlmexp.data.conversions import Conversions
from vlmexp.data.example import MEDIA_ROLES, check_columns
from vlmexp.data.nested import paths_in, with_nested
from vlmexp.data.row_chunks import RowChunks
from vlmexp.data.row_shape import MOST_COLUMNS, row_shape
from vlmexp.data.rows import BadSample, MediaStore, stored_row
from vlmexp.data.shaping import Rows
from vlmexp.data.verify import Verified
from vlmexp.errors import UserError

_ROWS_FOR_COLUMNS = 1000  # a required column that none of so many rows has does not exist


class Reading:
    """Reads the splits of one data set.

    Attributes:
        bad: for every row that cannot be used: split, id, column, path, reason, error.
    """

    def __init__(
        self,
        name: str,
        columns: Mapping[str, str | None],
        required: Sequence[str],
        store: MediaStore,
        convert: str = "auto",
        box_form: str = "xywh",
    ) -> None:
        self._name, self._columns, self._required = name, columns, required
        self.store, self._box_form = store, box_form
        self.bad: list[dict[str, Any]] = []
        self.conversions = Conversions(columns, convert)

    def rows(self, rows: Rows, split: str, folder: Path) -> RowChunks:
        """The rows of a split that can be used, as far as their text tells, in files in `folder`.

        Raises:
            UserError: a role's column is in no row, or that of a required role in none of the first.
        """
        chunks, seen, count = RowChunks(folder / split), set[str](), 0
        times = Counter[str]()  # how often an id was given so far
        media = media_columns(self._columns)
        known = {"id", "question_id", *(column for column in self._columns.values() if column)}
        dotted, inside = [column for column in self._columns.values() if column and "." in column], list[str]()
        for original in tqdm(rows, f"prepare {self._name} {split}", unit=" rows", leave=False):
            shape = row_shape(original, media)
            if shape.flaw is not None:  # of such a row, only what it is called is looked at
                original = {name: value for name, value in original.items() if name in known}
            if count == 0 and dotted:
                inside = list(paths_in(original))
            if count == _ROWS_FOR_COLUMNS:
                needed = {role: self._columns.get(role) for role in self._required}
                check_columns(needed, [], [*seen, *inside], split)
            original = with_nested(original, dotted) if dotted else original
            seen |= original.keys()
            if len(seen) > MOST_COLUMNS:
                raise UserError(
                    f"dataset={self._name}: the rows of the {split} split up to number {count + 1:,} have more than "
                    f"{MOST_COLUMNS:,} different columns: put what differs from row to row into one of them."
                )
            given = (original[name] for name in ("id", "question_id") if original.get(name) is not None)
            row = _unused(str(next(given, f"{split}-{count}")), times)
            count += 1
            try:
                if shape.flaw is not None:
                    raise BadSample("too large", shape.column, f"{shape.flaw}.")
                converted = self.conversions.read(original, split)
                stored = stored_row(converted, self._columns, self._required, self.store, self._box_form)
                chunks.add(stored | {"id": row}, shape.characters)
            except BadSample as error:
                self._add(split, row, error.column, None, error.reason, str(error))
        if count:
            check_columns(self._columns, [], [*seen, *inside], split)
        return chunks

    def converted(self, rows: RowChunks, split: str) -> np.ndarray:
        """[rows] bool: those that can still be used once their values are what they were before a table program."""
        keep, columns, number = np.ones(len(rows), bool), self.conversions.columns, itertools.count()
        answer = self._columns.get("answer") or ""

        def change(row: dict[str, Any]) -> dict[str, Any]:
            index, had = next(number), bool(row.get(answer))
            changed = self.conversions.change(row)
            if had and "answer" in self._required and not changed[answer]:
                keep[index] = False
                self._add(split, row["id"], answer, None, "empty answer", "the answer is empty.")
            return changed

        if columns:
            rows.change(["id", *columns], change)
        return keep

    def with_good_media(
        self, rows: RowChunks, keep: np.ndarray, split: str, files: Mapping[Path, Verified]
    ) -> np.ndarray:
        """[rows] bool: those of the ones to keep all of whose media could be decoded."""
        keep = keep.copy()
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
    while times.get(row):
        times[name] += 1
        row = f"{name}-{times[name]}"
    times[row] = times.get(row, 0) + 1
    return row


def media_columns(columns: Mapping[str, str | None]) -> tuple[str, ...]:
    """The columns that hold images or videos."""
    return tuple(column for role in MEDIA_ROLES if (column := columns.get(role)))


def _values(table: Any, column: str) -> list[list[str] | None]:
    return table[column].to_pylist() if column in table.column_names else [None] * len(table)
