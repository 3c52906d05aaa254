"""Python's search for garbage, which costs more the more there is in memory."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def spared() -> Iterator[None]:
    """For the length of the block, leave what is in memory now out of the search for garbage.

    A block that makes millions of small objects has all objects looked at many times: with torch and transformers
    loaded that is a quarter of its time.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
