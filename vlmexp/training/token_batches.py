"""Batches that hold as many examples as a number of tokens allows, padding included.

The rows of a batch (an example, or all questions about an image behind one prefix) are of like length, and rows times
the longest of them stays within the budget. How many batches an epoch has must not depend on the epoch, as learning
rates and checkpoints count in steps: so lengths are rounded up by at most a sixteenth, rows are sorted by these and cut
into batches once, and an epoch only draws which rows of the same rounded length go into which batch, and the order of
the batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from torch.utils.data import Sampler

from vlmexp.training.sampling import grouped, permutation


@dataclass(frozen=True)
class Rows:
    """The rows that batches are made of.

    Attributes:
        members: [examples] int32, the examples of the first row, of the second and so on.
        starts: [rows + 1], where those of each row begin, and the number of examples.
        tokens: [rows], how long each row is.
    """

    members: np.ndarray
    starts: np.ndarray
    tokens: np.ndarray


def single_rows(lengths: Sequence[int] | np.ndarray) -> Rows:
    """Each example has a row of its own."""
    count = len(lengths)
    return Rows(np.arange(count, dtype=np.int32), np.arange(count + 1), np.asarray(lengths, np.int64))


def shared_rows(
    lengths: Sequence[int] | np.ndarray,
    media_lengths: Sequence[int] | np.ndarray,
    keys: Sequence[object] | np.ndarray,
    budget: int,
) -> Rows:
    """Examples with the same key share a row and its media; where it would exceed the budget, further rows begin.

    A row counts as its media and all the rest of its examples, which may share some text before the media, too.
    """
    members, begin = grouped(keys)
    media = np.asarray(media_lengths)[members]
    texts = np.asarray(lengths)[members] - media
    starts, tokens = list[int](), list[int]()
    for first, end in pairwise(begin.tolist()):
        for place in range(first, end):
            if place == first or tokens[-1] + int(texts[place]) > budget:
                starts.append(place)
                tokens.append(int(media[first]))
            tokens[-1] += int(texts[place])
    return Rows(members, np.array([*starts, len(members)]), np.array(tokens, np.int64))


class TokenBatches(Sampler[list[int]]):
    """Yields the batches of one process in one epoch, a pure function of seed and epoch.

    Every process gets the same number of batches, and what the processes take at the same time is of like length. If
    there are too few rows for that, the longest batches come twice (`repeated` of them).

    Args:
        budget: tokens of a batch, padding included; a single row that is longer is a batch of its own.
    """

    def __init__(self, rows: Rows, budget: int, seed: int, processes: int = 1, process: int = 0) -> None:
        self.rows, self.budget, self.seed, self.epoch = rows, budget, seed, 0
        self.processes, self.process = processes, process
        self._rounded = _rounded_up(rows.tokens)
        self._cuts = _cut(np.sort(self._rounded)[::-1], budget, processes)
        batches = len(self._cuts) - 1
        self.repeated = -batches % processes
        self._batches = np.resize(np.arange(batches), batches + self.repeated)  # number of the batch in each place
        self._laid_out: tuple[int, np.ndarray, np.ndarray] | None = None

    def __iter__(self) -> Iterator[list[int]]:
        return self._taken(self.epoch, range(self.process, len(self._batches), self.processes))

    def __len__(self) -> int:
        return len(self._batches) // self.processes

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """The batches of all processes in an epoch."""
        return self._taken(epoch, range(len(self._batches)))

    def examples_after_steps(self, steps: int, batches_per_step: int) -> int:
        """How many examples all processes see in the first steps of a training; an epoch's last may be short."""
        epochs, rest = divmod(steps, -(-len(self) // batches_per_step))
        seen = self._examples(epochs)[: rest * batches_per_step * self.processes]
        return epochs * len(self.rows.members) + int(seen.sum())

    def _examples(self, epoch: int) -> np.ndarray:
        """The number of examples of every batch of an epoch."""
        order, places = self._layout(epoch)
        upto = np.concatenate([[0], np.cumsum(np.diff(self.rows.starts)[order])])
        return np.asarray(np.diff(upto[self._cuts])[places])

    def _taken(self, epoch: int, which: range) -> Iterator[list[int]]:
        order, places = self._layout(epoch)
        members, starts = self.rows.members, self.rows.starts
        for batch in places[which.start : which.stop : which.step].tolist():
            rows = order[self._cuts[batch] : self._cuts[batch + 1]].tolist()
            yield [int(index) for row in rows for index in members[starts[row] : starts[row + 1]]]

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows in the order in which they are cut into batches, and the number of the batch in each place."""
        if self._laid_out is None or self._laid_out[0] != epoch:
            rng = random.Random(f"{self.seed}:{epoch}")
            order = permutation(len(self._rounded), rng)
            order = order[np.argsort(-self._rounded[order], kind="stable")]
            # Neighbours have like lengths: they are the batches that the processes take at the same time. The longest
            # come first: what does not fit into memory should fail at once and not after hours.
            together = self._batches.reshape(-1, self.processes)
            later = 1 + permutation(len(together) - 1, rng)
            self._laid_out = epoch, order, together[np.concatenate([[0], later])].ravel()
        return self._laid_out[1:]


def _rounded_up(tokens: np.ndarray) -> np.ndarray:
    """Lengths rounded up to whole steps: from 16 tokens on a sixteenth of the power of two below."""
    steps = np.left_shift(1, np.maximum(0, np.log2(np.maximum(tokens, 1)).astype(np.int64) - 4))
    return np.asarray(-(-tokens // steps) * steps)


def _cut(lengths: np.ndarray, budget: int, processes: int) -> np.ndarray:
    """Where batches of rows begin, and the number of rows; as many batches for each process where that is possible.

    Args:
        lengths: of the rows, from long to short.
    """
    sizes, place = list[int](), 0
    while place < len(lengths):
        sizes.append(min(max(1, budget // int(lengths[place])), len(lengths) - place))
        place += sizes[-1]
    while len(sizes) % processes and max(sizes) > 1:
        largest = sizes.index(max(sizes))
        half = sizes[largest] // 2
        sizes[largest : largest + 1] = [sizes[largest] - half, half]
    return np.concatenate([[0], np.cumsum(sizes)])
