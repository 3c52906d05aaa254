"""Tables whose files hold packed values, read in a process of its own: a few bytes of them may stand for gigabytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlmexp.data.child_process import ChildProcess, Failed, NoMemory, Pool, Slow
from vlmexp.data.limits import budget

_ENVIRONMENT = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


class TableProcess(ChildProcess):
    """A process that reads parquet files, one at a time."""

    def __init__(self) -> None:
        super().__init__("vlmexp.data.table_child", _ENVIRONMENT)

    def batches(self, path: Path, memory: int) -> Iterator[Any]:
        """Record batches of a file, each of a size that may become Python objects; it may take so many bytes."""
        import pyarrow as pa

        seconds = budget.limits.decode_timeout_s
        self._give(seconds)
        self._ask({"path": str(path), "memory": memory})
        while size := self._answer()["size"]:
            content = bytearray(size)
            self._read_into(memoryview(content))
            with pa.ipc.open_stream(pa.py_buffer(content)) as stream:
                yield stream.read_next_batch()
            self._give(seconds)


_pool = Pool(TableProcess)


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file.

    Raises:
        ValueError: it is none, or needs more memory, or more time for a few rows, than a file may.
    """
    import pyarrow as pa

    limits = budget.limits
    try:
        with _pool.one() as process:
            for batch in process.batches(path, budget.size // 2):
                yield from batch.to_pylist()
    except NoMemory:
        raise ValueError(
            f"a few of its rows need more memory than half of dataset.decode_memory_mib={limits.decode_memory_mib}: "
            "write it anew in smaller pages, or raise that limit"
        ) from None
    except Slow:
        raise ValueError(
            f"a few of its rows take longer to read than dataset.decode_timeout_s={limits.decode_timeout_s:g}: write "
            "it anew, or raise that limit"
        ) from None
    except Failed as error:
        raise ValueError(str(error)) from None
    except (pa.lib.ArrowException, OSError, OverflowError) as error:  # of a value that Python cannot hold
        raise ValueError((str(error).splitlines() or [type(error).__name__])[0]) from None
