"""Batches that hold as many examples as a number of tokens allows.

The rows of a batch are examples, or all questions about an image behind one prefix. With padding they are of like
length, and rows times the longest of them stays within the budget. Without (packed) any rows go together, and the sum
of their lengths does. How many batches an epoch has must not depend on the epoch, as learning rates and checkpoints
count in steps: so lengths are rounded up by at most a sixteenth, and batches are made of these lengths once. An epoch
only draws which rows of the same rounded length go into which batch, and the order of the batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from vlmexp.training.sampling import grouped, permutation

_OPEN = 16  # batches among which a row's place is looked for


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


class TokenBatches:
    """The batches of an epoch, a pure function of seed and epoch.

    `together` batches that follow each other are of like size: so many processes take them at the same time. There
    are as many batches as they can share equally, unless there are too few rows for that.

    Args:
        budget: tokens of a batch, with its padding; a single row that is longer is a batch of its own.
        packed: there is none.
    """

    def __init__(self, rows: Rows, budget: int, seed: int, together: int = 1, packed: bool = False) -> None:
        self.rows, self.budget, self.seed, self.together = rows, budget, seed, together
        self._rounded = _rounded_up(rows.tokens)
        lengths = np.sort(self._rounded)[::-1]
        # Which of the rows, from long to short, stand in the batches one after another, and where each batch begins.
        self._slots, sizes = _filled(lengths, budget, seed) if packed else _alike(lengths, budget)
        self._cuts = np.concatenate([[0], np.cumsum(_shared_out(sizes, together))])
        self._laid_out: tuple[int, np.ndarray, np.ndarray] | None = None

    @property
    def batches_per_epoch(self) -> int:
        """How many batches an epoch has, those of all processes."""
        return len(self._cuts) - 1

    @property
    def examples_per_epoch(self) -> int:
        """How many examples an epoch shows: all."""
        return len(self.rows.members)

    def batches(self, epoch: int) -> Iterator[list[int]]:
        """The batches of an epoch, those of all processes."""
        order, places = self._layout(epoch)
        members, starts = self.rows.members, self.rows.starts
        for batch in places.tolist():
            rows = order[self._cuts[batch] : self._cuts[batch + 1]].tolist()
            yield [int(index) for row in rows for index in members[starts[row] : starts[row + 1]]]

    def examples_after_steps(self, steps: int, batches_per_step: int) -> int:
        """How many examples the first steps of a training see; an epoch's last may be short.

        Args:
            batches_per_step: of all processes.
        """
        epochs, rest = divmod(steps, -(-self.batches_per_epoch // batches_per_step))
        seen = self._examples(epochs)[: rest * batches_per_step]
        return epochs * self.examples_per_epoch + int(seen.sum())

    def _examples(self, epoch: int) -> np.ndarray:
        """The number of examples of every batch of an epoch."""
        order, places = self._layout(epoch)
        upto = np.concatenate([[0], np.cumsum(np.diff(self.rows.starts)[order])])
        return np.asarray(np.diff(upto[self._cuts])[places])

    def _layout(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows in the order in which they are cut into batches, and the number of the batch in each place."""
        if self._laid_out is None or self._laid_out[0] != epoch:
            rng = random.Random(f"{self.seed}:{epoch}")
            order = permutation(len(self._rounded), rng)
            order = order[np.argsort(-self._rounded[order], kind="stable")][self._slots]
            # Neighbours have like lengths: they are the batches that the processes take at the same time. The longest
            # come first: what does not fit into memory should fail at once and not after hours.
            whole = self.batches_per_epoch // self.together
            rounds = np.arange(whole * self.together).reshape(whole, self.together)
            later = 1 + permutation(max(whole - 1, 0), rng)
            rest = np.arange(whole * self.together, self.batches_per_epoch)
            places = np.concatenate([rounds[:1].ravel(), rounds[later].ravel(), rest])
            self._laid_out = epoch, order, places
        return self._laid_out[1:]


def _rounded_up(tokens: np.ndarray) -> np.ndarray:
    """Lengths rounded up to whole steps: from 16 tokens on a sixteenth of the power of two below."""
    steps = np.left_shift(1, np.maximum(0, np.log2(np.maximum(tokens, 1)).astype(np.int64) - 4))
    return np.asarray(-(-tokens // steps) * steps)


def _alike(lengths: np.ndarray, budget: int) -> tuple[np.ndarray, list[int]]:
    """Rows of like length in batches with padding: their order, and the number of rows of each batch.

    Args:
        lengths: of the rows, from long to short.
    """
    sizes, place = list[int](), 0
    while place < len(lengths):
        sizes.append(min(max(1, budget // int(lengths[place])), len(lengths) - place))
        place += sizes[-1]
    return np.arange(len(lengths)), sizes


def _filled(lengths: np.ndarray, budget: int, seed: int) -> tuple[np.ndarray, list[int]]:
    """Rows in random order in batches without padding, each put where the least room is left; as `_alike`.

    The fullest batch comes first.
    """
    batches, room = list[list[int]](), list[int]()
    open_batches = list[int]()  # the last few that have room: with more of them, few rows would be strangers
    for row in permutation(len(lengths), random.Random(f"{seed}:batches")).tolist():
        length = int(lengths[row])
        fitting = [batch for batch in open_batches if room[batch] >= length]
        if fitting:
            chosen = min(fitting, key=room.__getitem__)
            batches[chosen].append(row)
            room[chosen] -= length
        else:
            open_batches = [*open_batches[-_OPEN + 1 :], len(batches)]
            batches.append([row])
            room.append(budget - length)
    first = min(range(len(batches)), key=room.__getitem__)
    batches[0], batches[first] = batches[first], batches[0]
    return np.concatenate([np.array(batch) for batch in batches]), [len(batch) for batch in batches]


def _shared_out(sizes: list[int], together: int) -> list[int]:
    """Numbers of rows of so many batches that `together` divides them, where that is possible."""
    while len(sizes) % together and max(sizes) > 1:
        largest = sizes.index(max(sizes))
        half = sizes[largest] // 2
        sizes[largest : largest + 1] = [sizes[largest] - half, half]
    return sizes
