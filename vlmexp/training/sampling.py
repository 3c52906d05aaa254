"""The order in which an epoch visits the examples: a pure function of seed and epoch, so that a resume repeats it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence

from torch.utils.data import Sampler

Order = Callable[[random.Random], list[int]]
_MEGABATCH = 50  # batches sorted together by length


class EpochSampler(Sampler[int]):
    """Yields the indices of one epoch in the given order.

    The Trainer announces each epoch through `set_epoch`; batches are consecutive indices.
    """

    def __init__(self, order: Order, count: int, seed: int) -> None:
        self.order, self.count, self.seed, self.epoch = order, count, seed, 0

    def __iter__(self) -> Iterator[int]:
        return iter(self.order(random.Random(f"{self.seed}:{self.epoch}")))

    def __len__(self) -> int:
        return self.count

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def shuffled(count: int) -> Order:
    """All examples in random order."""
    return lambda rng: rng.sample(range(count), count)


def by_length(lengths: Sequence[int], batch_size: int) -> Order:
    """Random order in which a batch holds examples of like length; the longest batch of all comes first."""

    def order(rng: random.Random) -> list[int]:
        indices = rng.sample(range(len(lengths)), len(lengths))
        size = _MEGABATCH * batch_size
        chunks = [sorted(indices[i : i + size], key=lambda k: -lengths[k]) for i in range(0, len(indices), size)]
        batches = [chunk[i : i + batch_size] for chunk in chunks for i in range(0, len(chunk), batch_size)]
        full, rest = [b for b in batches if len(b) == batch_size], [b for b in batches if len(b) < batch_size]
        rng.shuffle(full)
        longest = max(full, key=lambda batch: lengths[batch[0]], default=None)
        if longest is not None:  # what does not fit into memory should fail at once and not after hours
            full.remove(longest)
            full.insert(0, longest)
        return [index for batch in full + rest for index in batch]

    return order


def by_media(keys: Sequence[str]) -> Order:
    """Images in random order, each followed at once by all its questions, these in random order as well."""
    groups: dict[str, list[int]] = {}
    for index, key in enumerate(keys):
        groups.setdefault(key, []).append(index)

    def order(rng: random.Random) -> list[int]:
        images = rng.sample(list(groups), len(groups))
        return [index for image in images for index in rng.sample(groups[image], len(groups[image]))]

    return order
