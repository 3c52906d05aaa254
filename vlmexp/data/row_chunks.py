"""The rows of a split on disk while they are checked and divided: in memory is one chunk of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from vlmexp.data.row_shape import MOST_FIELDS, has_many_fields

_CHARACTERS = 2**26  # in memory at once
_NO_COMMON_TYPE = (pa.ArrowInvalid, pa.ArrowTypeError)


class RowChunks:
    """Rows as Arrow tables of `chunk` rows each; a column whose values have no common type becomes text."""

    def __init__(self, folder: Path, chunk: int = 2_000) -> None:
        self._folder, self._chunk = folder, chunk
        self._rows, self._schemas = list[dict[str, Any]](), list[pa.Schema]()
        self._count = self._characters = 0
        folder.mkdir(parents=True)

    def __len__(self) -> int:
        return self._count

    def add(self, row: dict[str, Any], characters: int = 0) -> None:
        """Add a row, of about so many characters."""
        self._rows.append(row)
        self._count += 1
        self._characters += characters
        if len(self._rows) == self._chunk or self._characters > _CHARACTERS:
            self._write()

    def tables(self, *columns: str) -> Iterator[pa.Table]:
        """The rows, a chunk at a time; a column that a row did not have is null there.

        Args:
            columns: those to read, where they exist; none: all.
        """
        if self._rows:
            self._write()
        fields = dict[str, list[pa.Schema]]()
        for schema in self._schemas:
            for field in schema:
                fields.setdefault(field.name, []).append(pa.schema([field]))
        types = {name: _type(name, parts) for name, parts in fields.items() if not columns or name in columns}
        wanted = {name: types[name] for name in columns if name in types} if columns else types
        for number in range(len(self._schemas)):
            with pa.OSFile(str(self._file(number))) as file, pa.ipc.open_stream(file) as stream:
                table = stream.read_all()
            there = set(table.column_names)
            yield pa.table({name: _as_type(table, name, wanted[name], name in there) for name in wanted})

    def change(self, columns: Sequence[str], change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        """Change the values of some columns, row by row.

        Args:
            change: of a row's values in those of the columns that there are, to the new ones.
        """
        if self._rows:
            self._write()
        for number, schema in enumerate(self._schemas):
            names = [name for name in columns if name in schema.names]
            with pa.OSFile(str(self._file(number))) as file, pa.ipc.open_stream(file) as stream:
                table = stream.read_all()
            rows = [change(row) for row in table.select(names).to_pylist()]
            for name in names:
                values = _array([row[name] for row in rows])
                table = table.set_column(table.column_names.index(name), name, values)
            self._write_table(number, table)
            self._schemas[number] = table.schema

    def _write(self) -> None:
        names = dict.fromkeys(name for row in self._rows for name in row)
        table = pa.table({name: _array([row.get(name) for row in self._rows]) for name in names})
        self._write_table(len(self._schemas), table)
        self._schemas.append(table.schema)
        self._rows, self._characters = [], 0

    def _write_table(self, number: int, table: pa.Table) -> None:
        with pa.OSFile(str(self._file(number)), "wb") as file, pa.ipc.new_stream(file, table.schema) as out:
            out.write_table(table)

    def _file(self, number: int) -> Path:
        return self._folder / f"{number}.arrow"


def _type(name: str, parts: Sequence[pa.Schema]) -> pa.DataType | None:
    """The type that a column has in all chunks; None where there is none."""
    try:
        found = pa.unify_schemas(parts, promote_options="permissive").field(name).type
    except _NO_COMMON_TYPE:
        return None
    return found if _fields(found) <= MOST_FIELDS else None


def _fields(kind: pa.DataType) -> int:
    return sum(1 + _fields(kind.field(number).type) for number in range(kind.num_fields))


def _as_type(table: pa.Table, name: str, wanted: pa.DataType | None, is_there: bool) -> pa.Array | pa.ChunkedArray:
    if not is_there:
        return pa.nulls(len(table), wanted or pa.string())
    if wanted is None:
        return _text_array(table[name].to_pylist())
    empty = pa.schema([(name, wanted)]).empty_table()
    return pa.concat_tables([table.select([name]), empty], promote_options="permissive")[name]


def _array(values: list[Any]) -> pa.Array:
    if has_many_fields(values):  # each field of one row would be stored with all of them
        return _text_array(values)
    try:
        return pa.array(values)
    except (*_NO_COMMON_TYPE, OverflowError, UnicodeEncodeError):
        return _text_array(values)


def _text_array(values: list[Any]) -> pa.Array:
    texts = [None if v is None else v if isinstance(v, str) else json.dumps(v, default=str) for v in values]
    return pa.array([t if t is None else t.encode(errors="replace").decode() for t in texts], pa.string())
