"""The examples of one prepared split, read from a memory-mapped file."""

from __future__ import annotations

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import datasets
import numpy as np

from vlmexp.data.example import MEDIA_ROLES, Example, check_columns, to_example
from vlmexp.data.prepare import Prepared
from vlmexp.data.stored_arrays import stored_array
from vlmexp.errors import UserError

_ROWS_A_MAPPING = 50_000  # read before the file is mapped anew; what was read of it counts as this process's memory
_CHUNK = 2048  # rows read at a time


class ExampleSequence(Sequence[Example], ABC):
    """Examples that are made when they are asked for, by index or by slice."""

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return self.examples(range(*index.indices(len(self))))
        return self.example(index)

    def examples(self, indices: range) -> list[Example]:
        """The examples at these places."""
        return [self.example(index) for index in indices]

    @abstractmethod
    def example(self, index: int) -> Example:
        """The example at a place from 0 on."""


class Examples(ExampleSequence):
    """A split as a sequence of examples; media are paths until the collator opens them.

    `image_sizes()` gives the width and height of every image of the data set, by its path, as far as they are known.

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
        counts = prepared.manifest["counts"]
        if not counts.get(split):
            there = ", ".join(f"{name} ({count:,} rows)" for name, count in counts.items() if count)
            raise UserError(
                f"The data set {prepared.folder.name} has no {split} split, it has {there}: name one of the source's "
                f"({', '.join(prepared.manifest['available'])}) with dataset.splits.{split}, or, with dataset=files, a "
                f"file with dataset.options.{split}."
            )
        self._file, self._root = prepared.arrow(split), prepared.folder
        self.image_sizes = prepared.image_sizes
        self._rows: np.ndarray | None = None
        self._table, self._read = self._mapped(), 0
        check_columns(columns, metadata, self._table.column_names, split)
        self.population = len(self._table)
        if limit is not None and limit < self.population:
            self._rows = np.sort(np.array(random.Random(seed).sample(range(self.population), limit), np.int64))
            self._table = self._mapped()
        self._columns, self._metadata = columns, list(metadata)
        self._split, self._answer_seed = split, answer_seed
        self._sample = None if self._rows is None else [limit, seed]
        self._fingerprint = prepared.fingerprint

    def __len__(self) -> int:
        return len(self._table)

    def example(self, index: int) -> Example:
        self._count(1)
        return self._example(self._table[index])

    def examples(self, indices: range) -> list[Example]:
        self._count(len(indices))
        columns = self._table[indices]
        rows = zip(*columns.values(), strict=True)
        return [self._example(dict(zip(columns, row, strict=True))) for row in rows]

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides what the examples are, apart from their metadata, as JSON values."""
        return self._rows_identity | {"columns": dict(self._columns), "answer_seed": self._answer_seed}

    @property
    def _rows_identity(self) -> dict[str, Any]:
        return {"fingerprint": self._fingerprint, "split": self._split, "sample": self._sample}

    @property
    def cache(self) -> Path:
        """The folder for what is computed from these examples."""
        return self._root / "computed"

    def ids(self) -> list[str]:
        """The id of each example."""
        return [str(value) for value in self._table["id"]]

    def media_keys(self) -> np.ndarray:
        """[examples] int64: a number that is equal exactly for examples with the same media, and there are media."""
        columns = [column for role in MEDIA_ROLES if (column := self._columns.get(role)) in self._table.column_names]

        def make() -> np.ndarray:
            keys = np.empty(len(self), np.int64)
            for start in range(0, len(self), _CHUNK):
                self._count(_CHUNK)
                chunk = self._table.select_columns(columns)[start : start + _CHUNK] if columns else {}
                rows = list(zip(*chunk.values(), strict=True)) or [()] * min(_CHUNK, len(self) - start)
                for index, row in enumerate(rows, start):
                    text = str(row) if any(row) else f"no media {index}"
                    keys[index] = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), signed=True)
            return keys

        return stored_array(self.cache, f"{self._split}-media", self._rows_identity | {"columns": columns}, make)

    def _example(self, row: Mapping[str, Any]) -> Example:
        return to_example(row, self._columns, self._metadata, self._root, self._split, self._answer_seed)

    def _mapped(self) -> datasets.Dataset:
        table = datasets.Dataset.from_file(str(self._file))
        return table if self._rows is None else table.select(self._rows)

    def _count(self, rows: int) -> None:
        """Map the file anew from time to time, so that memory stays flat however much of it is read."""
        self._read += rows
        if self._read > _ROWS_A_MAPPING:
            self._table, self._read = self._mapped(), rows
