"""The process that reads parquet files for another one, within a limit for memory.

The request is {"path", "memory"}. Answered is {"size": bytes} with an Arrow stream of so many for each batch of rows,
and then {"size": 0}; or, at any place, {"unreadable": why} or {"memory": true}.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmexp.data.child import limit_memory, pipes
from vlmexp.data.row_shape import DEEPEST, MOST_COLUMNS, MOST_VALUES

_BATCH = 256  # rows
_PIECE = 2**24  # bytes that are sent at once, and as Python objects in the other process
_BUFFER = 2**20  # bytes of a column that are read at once
_LARGEST_ROW = 2**28  # bytes
_DENSE = 100  # times that the values of all rows may be larger than the file
_FREE = 2**32  # bytes that they may have anyway
_MANY = 16  # values for each byte of the file that the rows may have
_FREE_VALUES = 2**24  # that they may have anyway


class _Unreadable(Exception):
    """What is wrong with a file, as the end of a sentence."""


def size(array: Any) -> tuple[int, int]:
    """Bytes of an array's values and how many those are, as if none shared its bytes with another."""
    kind = array.type
    if isinstance(array, pa.ExtensionArray):
        return size(array.storage)
    if pa.types.is_dictionary(kind):
        return len(array) * _longest(array.dictionary), len(array)
    if pa.types.is_struct(kind):
        inner = [size(field) for field in array.flatten()]
    elif pa.types.is_map(kind):
        start, end = array.offsets[0].as_py(), array.offsets[-1].as_py()
        inner = [size(array.values.slice(start, end - start))]
    elif hasattr(array, "flatten"):  # a list of some kind
        inner = [size(array.flatten())]
    else:
        return array.nbytes, len(array)
    return 8 * len(array) + sum(part[0] for part in inner), len(array) + sum(part[1] for part in inner)


def _longest(values: Any) -> int:
    if not len(values):
        return 0
    try:
        return int(pc.max(pc.binary_length(values)).as_py() or 0)
    except pa.ArrowNotImplementedError:  # no texts
        return int(size(values)[0])


def pieces(batch: Any) -> Iterator[tuple[Any, int, int]]:
    """A batch in parts that may become Python objects, and the bytes and values of each.

    Raises:
        _Unreadable: a row is too large.
    """
    sizes = [size(column) for column in batch.columns]
    bytes, values = (sum(part[index] for part in sizes) for index in (0, 1))
    if bytes <= _PIECE and values <= MOST_VALUES:
        yield batch, bytes, values
    elif batch.num_rows > 1:
        half = batch.num_rows // 2
        yield from pieces(batch.slice(0, half))
        yield from pieces(batch.slice(half))
    elif values > MOST_VALUES + MOST_COLUMNS:
        raise _Unreadable(f"a row has more than {MOST_VALUES:,} values")
    elif bytes > _LARGEST_ROW:
        raise _Unreadable(f"a row has {bytes:,} bytes, more than {_LARGEST_ROW:,}")
    else:
        yield batch, bytes, values


class Child:
    """Answers requests until there are no more."""

    def __init__(self, requests: IO[bytes], answers: IO[bytes]) -> None:
        self._requests, self._answers = requests, answers

    def run(self) -> None:
        for line in self._requests:
            request = json.loads(line)
            try:
                limit_memory(request["memory"])
                self._send_rows(request["path"])
                found: dict[str, Any] = {"size": 0}
            except _Unreadable as error:
                found = {"unreadable": str(error)}
            except MemoryError:
                found = {"memory": True}
            except Exception as error:  # of a damaged file
                said = (str(error).strip().splitlines() or [type(error).__name__])[0]
                found = {"unreadable": said[:1_000]}
            self._answers.write(json.dumps(found).encode() + b"\n")
            self._answers.flush()

    def _send_rows(self, path: str) -> None:
        with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as file, open(path, "rb") as opened:
            own = opened.seek(0, 2)
            most, most_values = max(_FREE, _DENSE * own), max(_FREE_VALUES, _MANY * own)
            _require_plain(file, own)
            whole = count = 0
            for batch in _batches(file):
                for piece, size, values in pieces(batch):
                    whole, count = whole + size, count + values
                    if whole > most or count > most_values:
                        raise _Unreadable(_bomb(own, f"{most:,}" if whole > most else f"{most_values:,} values"))
                    self._send(piece)

    def _send(self, batch: Any) -> None:
        buffer = pa.BufferOutputStream()
        with pa.ipc.new_stream(buffer, batch.schema) as stream:
            stream.write_batch(batch)
        content = buffer.getvalue()
        self._answers.write(json.dumps({"size": content.size}).encode() + b"\n")
        self._answers.write(memoryview(content))
        self._answers.flush()


def _bomb(size: int, more: str) -> str:
    return f"its {size:,} bytes stand for more than {more}, and it is taken for a decompression bomb: repeat less in it"


def _require_plain(file: Any, size: int) -> None:
    about = file.metadata
    if about.num_columns > MOST_COLUMNS:
        raise _Unreadable(f"it has {about.num_columns:,} columns, more than {MOST_COLUMNS:,}")
    if about.num_rows > size:
        raise _Unreadable(f"it has {about.num_rows:,} rows in {size:,} bytes")
    for field in file.schema_arrow:
        if _depth(field.type) > DEEPEST:
            raise _Unreadable(f"its column {field.name[:100]} is nested too deeply, more than {DEEPEST} levels")


def _depth(kind: Any) -> int:
    """Levels of lists and objects in each other."""
    depth, level = 0, [kind]
    while level := [one.field(n).type for one in level for n in range(one.num_fields)]:
        depth += 1
    return depth


def _batches(file: Any) -> Iterator[Any]:
    """Rows as they are read, fewer at once where many need too much memory."""
    for number in range(file.metadata.num_row_groups):
        group, done = file.metadata.row_group(number), 0
        rows = max(1, min(_BATCH, _PIECE * group.num_rows // max(1, group.total_byte_size)))
        try:
            for batch in _group(file, number, rows):
                done += batch.num_rows
                yield batch
        except MemoryError:
            if rows == 1:
                raise
            yield from _after(_group(file, number, 1), done)


def _group(file: Any, number: int, rows: int) -> Iterator[Any]:
    yield from file.iter_batches(batch_size=rows, row_groups=[number], use_threads=False)


def _after(batches: Iterator[Any], rows: int) -> Iterator[Any]:
    """Batches of one row, without the first ones."""
    for number, batch in enumerate(batches):
        if number >= rows:
            yield batch


def main() -> None:
    """Read tables for another process."""
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    Child(*pipes()).run()
