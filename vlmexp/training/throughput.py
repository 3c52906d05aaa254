"""What the training steps since the last logged one did: tokens that the model read, and time spent on waiting."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from vlmexp import distributed


class Throughput:
    """Counts while a training runs; `read` gives the rates since `restart`.

    Tokens are those of the attention masks: media tokens count, padding does not, and the prefix that several questions
    share counts once. Waiting is the time in which the training loop asks for a batch and has none: decoding and
    tokenizing in the training process itself, or waiting for its workers, and the copy to the device.
    """

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin to count anew."""
        self._started = time.perf_counter()
        self._waited_s = 0.0
        self._tokens: torch.Tensor | int = 0

    def timed(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches; the time that each takes to come counts as waiting."""
        while True:
            asked = time.perf_counter()
            batch = next(batches, None)
            self._waited_s += time.perf_counter() - asked
            if batch is None:
                return
            yield batch

    def count(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """Count the tokens of a batch; on a GPU without waiting for it."""
        self._tokens = self._tokens + inputs["attention_mask"].sum()

    def read(self) -> tuple[float, float, float]:
        """(seconds, tokens a second of all ranks, share of the time that ranks waited for data); all ranks must ask."""
        ranks = distributed.gathered((int(self._tokens), self._waited_s))
        elapsed_s = max(time.perf_counter() - self._started, 1e-9)
        tokens, waited_s = sum(tokens for tokens, _ in ranks), sum(waited_s for _, waited_s in ranks)
        return elapsed_s, tokens / elapsed_s, min(waited_s / len(ranks) / elapsed_s, 1.0)
