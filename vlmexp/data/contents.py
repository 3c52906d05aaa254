"""Which rows show the same: pictures by their pixels, videos by their bytes, and rows without either by their texts."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmexp.data.example import ANSWER_ROLES, BOX, MEDIA_ROLES
from vlmexp.data.row_chunks import RowChunks
from vlmexp.data.verify import Verified


@dataclass(frozen=True)
class Contents:
    """What the media of a data set show.

    Attributes:
        numbers: path, as rows name it -> a number from 0 on that files have in common exactly if they show the same.
        names: [number] by which contents are put in order; it depends on the files' bytes alone.
        looks: [number] see `pictures.look`; empty for a video.
        paths: [number] one of the files.
    """

    numbers: dict[str, int]
    names: list[str]
    looks: list[bytes]
    paths: list[str]


def contents_of(files: Mapping[Path, Verified]) -> Contents:
    """The contents of the media that could be read."""
    first: dict[bytes, tuple[Path, Verified]] = {}
    for path, file in files.items():
        if file.error is None and (file.shows not in first or file.name < first[file.shows][1].name):
            first[file.shows] = path, file
    ordered = sorted(first.values(), key=lambda pair: pair[1].name)
    number = {file.shows: index for index, (_, file) in enumerate(ordered)}
    return Contents(
        {str(path): number[file.shows] for path, file in files.items() if file.error is None},
        [file.name for _, file in ordered],
        [file.look for _, file in ordered],
        [str(path) for path, _ in ordered],
    )


@dataclass(frozen=True)
class Shown:
    """What the rows of a split show, in a few bytes a row.

    Attributes:
        keys: [contents of all rows] int64: those of each row in turn: numbers of `Contents` from 0 on, or, for a row
            without media, a number below 0 that rows with the same texts have in common.
        ends: [rows] int64: behind the last key of each row.
    """

    keys: np.ndarray
    ends: np.ndarray

    @property
    def counts(self) -> np.ndarray:
        """[rows] how many keys each has; none has a row whose media cannot be read."""
        return np.diff(self.ends, prepend=0)

    def of(self, rows: np.ndarray) -> np.ndarray:
        """The keys of the rows of a mask, ascending, each once."""
        return np.unique(self.keys[np.repeat(rows, self.counts)])

    def have_any(self, keys: np.ndarray) -> np.ndarray:
        """[rows] bool: those with at least one of these keys."""
        known = np.concatenate([[0], np.cumsum(np.isin(self.keys, keys))])
        return known[self.ends] > known[self.ends - self.counts]

    def without_media(self, rows: np.ndarray) -> int:
        """How many rows of a mask have neither an image nor a video."""
        return int((self.keys[np.repeat(rows, self.counts)] < 0).sum())

    def groups(self) -> np.ndarray:
        """[rows] int64: the least key that a row is connected with, directly or through other rows."""
        parent: dict[int, int] = {}

        def root(key: int) -> int:
            while parent.setdefault(key, key) != key:
                key = parent[key] = parent[parent[key]]
            return key

        starts, counts = self.ends - self.counts, self.counts
        for row in np.flatnonzero(counts > 1).tolist():
            first, *others = self.keys[starts[row] : self.ends[row]].tolist()
            for other in others:
                least, most = sorted((root(first), root(other)))
                parent[most] = least
        firsts = np.where(counts > 0, self.keys[np.minimum(starts, len(self.keys) - 1)], -1)
        connected = np.array(sorted(parent), np.int64)
        roots = np.array([root(key) for key in connected.tolist()], np.int64)
        is_connected = np.isin(firsts, connected)
        firsts[is_connected] = roots[np.searchsorted(connected, firsts[is_connected])]
        return firsts


def shown(rows: RowChunks, columns: Mapping[str, str | None], contents: Contents) -> Shown:
    """What the rows of a split show."""
    keys, ends = array("q"), array("q")
    for table in _tables(rows, columns):
        single = _one_each(table, columns, contents)
        ends.extend(range(len(keys) + 1, len(keys) + len(single) + 1))
        keys.extend(single)
        for _, _, own in [] if single else _described(table, columns, contents):
            keys.extend(sorted(own))
            ends.append(len(keys))
    return Shown(np.array(keys, np.int64), np.array(ends, np.int64))


def described(
    rows: RowChunks, columns: Mapping[str, str | None], contents: Contents
) -> Iterator[tuple[str, list[Any], dict[int, str | None]]]:
    """Of each row its id, its question and other texts, and key -> path of what it shows (see `Shown`)."""
    for table in _tables(rows, columns):
        yield from _described(table, columns, contents)


def _tables(rows: RowChunks, columns: Mapping[str, str | None]) -> Iterator[pa.Table]:
    answer = [column] if (column := columns.get("answer")) else []
    return rows.tables("id", *_media(columns), *_texts(columns), *answer)


def _media(columns: Mapping[str, str | None]) -> list[str]:
    return [column for role in MEDIA_ROLES if (column := columns.get(role))]


def _texts(columns: Mapping[str, str | None]) -> list[str]:
    return [column for role, column in columns.items() if column and role not in (*MEDIA_ROLES, *ANSWER_ROLES, BOX)]


def _described(
    table: pa.Table, columns: Mapping[str, str | None], contents: Contents
) -> Iterator[tuple[str, list[Any], dict[int, str | None]]]:
    media, texts, names = _media(columns), _texts(columns), table.column_names
    answer = [column] if (column := columns.get("answer")) else []
    for row in zip(*(table[name].to_pylist() for name in names), strict=True):
        values = dict(zip(names, row, strict=True))
        paths = [path for column in media for path in values.get(column) or ()]
        said = [values.get(column) for column in texts]
        own: dict[int, str | None] = {contents.numbers[path]: path for path in paths if path in contents.numbers}
        if not paths:
            own = {_text_key([*said, *(values.get(column) for column in answer)]): None}
        yield values["id"], said, own


def _one_each(table: pa.Table, columns: Mapping[str, str | None], contents: Contents) -> list[int]:
    """What the rows show where each shows one file that can be read, as most tables' do; else none."""
    media = [column for column in _media(columns) if column in table.column_names]
    if len(media) != 1 or not pa.types.is_list(table.schema.field(media[0]).type):
        return []
    lengths = pc.list_value_length(table[media[0]])
    if lengths.null_count or not pc.all(pc.equal(lengths, 1)).as_py():
        return []
    found = [contents.numbers.get(path) for path in pc.list_flatten(table[media[0]]).to_pylist()]
    return [number for number in found if number is not None] if None not in found else []


def _text_key(values: Sequence[Any]) -> int:
    digest = hashlib.blake2b(repr(values).encode(errors="replace"), digest_size=8).digest()
    return -1 - (int.from_bytes(digest) >> 1)
