"""The examples of one prepared split, read from a memory-mapped file."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import overload

import datasets

from vlmexp.data.example import MEDIA_ROLES, Example, check_columns, to_example
from vlmexp.data.prepare import Prepared
from vlmexp.errors import UserError


class ExampleSequence(Sequence[Example], ABC):
    """Examples that are made when they are asked for, by index or by slice."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.example(index)

    @abstractmethod
    def example(self, index: int) -> Example:
        """The example at a place from 0 on."""


class Examples(ExampleSequence):
    """A split as a sequence of examples; media are paths until the collator opens them.

    Args:
        prepared: the prepared data set.
        split: train, validation or test.
        columns: role -> column.
        metadata: columns to keep beside each example.
        answer_seed: train on an answer drawn by this seed and the row's id; None: on the most common one.
        limit: a fixed random sample of so many rows (chosen by `seed`, kept in their order); None: all rows.
    """

    def __init__(
        self,
        prepared: Prepared,
        split: str,
        columns: Mapping[str, str | None],
        metadata: Sequence[str] = (),
        limit: int | None = None,
        seed: int = 0,
        answer_seed: int | None = None,
    ) -> None:
        if not prepared.manifest["counts"].get(split):
            raise UserError(f"The data set {prepared.folder.name} has no {split} split.")
        table = datasets.Dataset.from_file(str(prepared.arrow(split)))
        check_columns(columns, metadata, table.column_names, split)
        self.population = len(table)
        if limit is not None and limit < len(table):
            table = table.select(sorted(random.Random(seed).sample(range(len(table)), limit)))
        self._table, self._columns, self._metadata, self._root = table, columns, list(metadata), prepared.folder
        self._split, self._answer_seed = split, answer_seed

    def __len__(self) -> int:
        return len(self._table)

    def example(self, index: int) -> Example:
        row = self._table[index]
        return to_example(row, self._columns, self._metadata, self._root, self._split, self._answer_seed)

    def ids(self) -> list[str]:
        """The id of each example."""
        return [str(value) for value in self._table["id"]]

    def media_keys(self) -> list[str]:
        """For each example, a text that is equal exactly for examples with the same media, and there are media."""
        columns = [column for role in MEDIA_ROLES if (column := self._columns.get(role)) in self._table.column_names]
        rows = zip(*(self._table[column] for column in columns), strict=True) if columns else [()] * len(self)
        return [str(row) if any(row) else f"no media {index}" for index, row in enumerate(rows)]
