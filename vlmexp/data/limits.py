"""How much memory and time a process gives to files that others made, all of its threads together."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What a file may cost.

    Attributes:
        decode_memory_mib: for all images and videos that are decoded at a moment. What needs more alone is not read;
            what has no room beside the others waits for it.
        decode_timeout_s: seconds; a video that takes longer to decode is not read, nor a table of which a few rows do,
            nor a file of media that takes what is left of it, at least a half, and more to be hashed.
        max_file_gib: of an image, a video or a data file on disk; a larger one is not read.
    """

    decode_memory_mib: int = 1024
    decode_timeout_s: float = 40.0
    max_file_gib: float = 16.0


class Budget:
    """Memory that is taken before something is decoded and given back afterwards."""

    def __init__(self) -> None:
        self.limits = Limits()
        self._taken = 0
        self._changed = threading.Condition()

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.limits.decode_memory_mib * MIB

    @property
    def most_bytes(self) -> int:
        """Of a file."""
        return int(self.limits.max_file_gib * 2**30)

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[Share]:
        """Take so many bytes, at most all there are, for the length of the block; waits until they are free."""
        size = min(size, self.size)
        with self._changed:
            self._changed.wait_for(lambda: self._taken + size <= self.size)
            self._taken += size
        share = Share(self, size)
        try:
            yield share
        finally:
            with self._changed:
                self._taken -= share.size
                self._changed.notify_all()

    def _add(self, size: int) -> bool:
        with self._changed:
            has_room = self._taken + size <= self.size
            self._taken += size if has_room else 0
            return has_room

    def changed_limits(self) -> dict[str, Any]:
        """The limits that are not the defaults."""
        given, defaults = dataclasses.asdict(self.limits), dataclasses.asdict(Limits())
        return {name: value for name, value in given.items() if value != defaults[name]}

    def _forked(self) -> None:
        """A new process has none of the threads that had taken something."""
        self._taken, self._changed = 0, threading.Condition()


class Share:
    """What was taken out of a budget; `size` in bytes."""

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget, self.size = budget, size

    def grown(self, size: int) -> bool:
        """Take so many bytes more if they are free at this moment; whether they were. It never waits, as others might
        wait at the same time and keep what they have.
        """
        has_room = self._budget._add(size)
        self.size += size if has_room else 0
        return has_room


budget = Budget()  # of this process
os.register_at_fork(after_in_child=budget._forked)


def set_limits(limits: Limits) -> None:
    """Set what files may cost in this process and in those forked from it."""
    budget.limits = limits
