"""The batches of a training, dealt to its processes.

Which batches an optimizer step takes is a function of the step alone. Of n processes the first takes the first batch,
the second the next one, and after n of them it is the first one's turn again: two processes that take a batch each see
in a step what one process sees that takes two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from vlmexp.data.example import Example
from vlmexp.training.sampling import EpochSampler
from vlmexp.training.token_batches import TokenBatches


class RankBatches(Sampler[list[int]]):
    """Yields the batches of one process in one epoch; every process gets as many.

    Where the last round has no batch for a process, it gets one example that carries no loss: `~index` in the place of
    an index says so (see DealtExamples).
    """

    def __init__(self, batches: EpochSampler | TokenBatches, processes: int = 1, process: int = 0) -> None:
        self.batches, self.processes, self.process, self.epoch = batches, processes, process, 0

    def __iter__(self) -> Iterator[list[int]]:
        place, batch = -1, [0]
        for place, batch in enumerate(self.batches.batches(self.epoch)):
            if place % self.processes == self.process:
                yield batch
        if place % self.processes < self.process:
            yield [~batch[0]]

    def __len__(self) -> int:
        return -(-self.batches.batches_per_epoch // self.processes)

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@dataclass(frozen=True)
class WithoutLoss:
    """An example that fills a place."""

    example: Example


class DealtExamples(Dataset[Any]):
    """The examples by the indices of RankBatches."""

    def __init__(self, examples: Sequence[Example]) -> None:
        self.examples = examples

    def __getitem__(self, index: int) -> Example | WithoutLoss:
        return self.examples[index] if index >= 0 else WithoutLoss(self.examples[~index])

    def __len__(self) -> int:
        return len(self.examples)


@dataclass(frozen=True)
class DealtCollator:
    """Collates what DealtExamples gives; a batch that fills a place has no label.

    Where the loss is a sum over the labels of a step's batches on all processes, divided by their number, such a batch
    adds nothing to either. Where it is a mean of means, a batch has to have labels: `without_loss=False` leaves them.
    """

    collate: Callable[[Sequence[Example]], dict[str, torch.Tensor]]
    without_loss: bool = True

    def __call__(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        if not isinstance(items[0], WithoutLoss):
            return self.collate(items)
        batch = self.collate([item.example for item in items])
        return {**batch, "labels": torch.full_like(batch["labels"], -100)} if self.without_loss else batch
