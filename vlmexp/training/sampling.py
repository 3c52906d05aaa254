"""The order in which an epoch visits the examples: a pure function of seed and epoch, so that a resume repeats it.

Orders are arrays of 32-bit integers, and no list of all examples is made: memory stays flat as data sets grow.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

Order = Callable[[random.Random], np.ndarray]  # [examples] int32
_MEGABATCH = 50  # batches sorted together by length
_CHUNK = 4096  # indices that are Python's integers at a time


class EpochSampler(Sampler[int]):
    """Yields the indices of one epoch in the given order.

    The Trainer announces each epoch through `set_epoch`; batches are `batch_size` consecutive indices, and fewer at the
    end of an epoch, which `drop_last` leaves out.
    """

    def __init__(self, order: Order, count: int, seed: int, batch_size: int = 1, drop_last: bool = False) -> None:
        self.order, self.count, self.seed, self.epoch, self.batch_size = order, count, seed, 0, batch_size
        self.drop_last = drop_last
        self._last: tuple[int, np.ndarray] | None = None  # epoch and order: several ask for those of one epoch

    def __iter__(self) -> Iterator[int]:
        order = self._of(self.epoch)
        for start in range(0, len(order), _CHUNK):
            yield from order[start : start + _CHUNK].tolist()

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """The batches of an epoch."""
        order, size = self._of(epoch), self.batch_size
        return (order[place * size : (place + 1) * size].tolist() for place in range(self.batches_per_epoch))

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has, those of all processes."""
        return self.count // self.batch_size if self.drop_last else -(-self.count // self.batch_size)

    @property
    def examples_per_epoch(self) -> int:
        """How many examples an epoch shows."""
        return min(self.count, self.batches_per_epoch * self.batch_size)

    def _of(self, epoch: int) -> np.ndarray:
        if self._last is None or self._last[0] != epoch:
            self._last = epoch, self.order(random.Random(f"{self.seed}:{epoch}"))
        return self._last[1]


class StoredBatches(Sampler[list[int]]):
    """Batches of consecutive indices, of which each rank has its share: every index once on one of them.

    Some ranks may have a batch more than others.
    """

    def __init__(self, count: int, batch_size: int, rank: int, ranks: int) -> None:
        self.count, self.batch_size = count, batch_size
        self._starts = range(rank * batch_size, count, ranks * batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        return (list(range(start, min(start + self.batch_size, self.count))) for start in self._starts)

    def __len__(self) -> int:
        return len(self._starts)


def permutation(count: int, rng: random.Random) -> np.ndarray:
    """[count] int32: 0 to count - 1 in random order, in the same one whatever NumPy's version."""
    words = np.frombuffer(rng.randbytes(8 * count), np.uint64)
    return np.argsort(words, kind="stable").astype(np.int32)


def shuffled(count: int) -> Order:
    """All examples in random order."""
    return lambda rng: permutation(count, rng)


def by_length(lengths: Sequence[int] | np.ndarray, batch_size: int) -> Order:
    """Random order in which a batch holds examples of like length; the longest batch of all comes first."""
    lengths = np.asarray(lengths)

    def order(rng: random.Random) -> np.ndarray:
        indices = permutation(len(lengths), rng)
        size = _MEGABATCH * batch_size
        for start in range(0, len(indices), size):
            chunk = indices[start : start + size]
            indices[start : start + size] = chunk[np.argsort(-lengths[chunk], kind="stable")]
        full = len(indices) // batch_size
        batches = indices[: full * batch_size].reshape(full, batch_size)[permutation(full, rng)]
        if full:  # what does not fit into memory should fail at once and not after hours
            longest = int(np.argmax(lengths[batches].max(axis=1)))
            batches[[0, longest]] = batches[[longest, 0]]
        return np.concatenate([batches.ravel(), indices[full * batch_size :]])

    return order


def grouped(keys: Sequence[object] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Examples by key, keys in the order of their first appearance.

    Returns:
        [examples] int32, the indices of the examples of the first key, of the second and so on;
        [keys + 1] int64, where those of each key begin, and the number of examples.
    """
    _, first, inverse = np.unique(np.asarray(keys), return_index=True, return_inverse=True)
    place = np.argsort(np.argsort(first))[inverse]
    starts = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(first)))])
    return np.argsort(place, kind="stable").astype(np.int32), starts


def by_media(keys: Sequence[object] | np.ndarray) -> Order:
    """Images in random order, each followed at once by all its questions, these in random order as well."""
    members, starts = grouped(keys)

    def order(rng: random.Random) -> np.ndarray:
        images = len(starts) - 1
        ordered, place = np.empty(len(members), np.int32), 0
        for image in rng.sample(range(images), images):
            questions = members[starts[image] : starts[image + 1]].tolist()
            ordered[place : place + len(questions)] = rng.sample(questions, len(questions))
            place += len(questions)
        return ordered

    return order
