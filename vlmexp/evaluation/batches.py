"""Batches of questions, each of which is prepared while the model answers the one before it."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from tqdm import tqdm

from vlmexp.collator.media import media_key
from vlmexp.data.example import Example

AHEAD = 2  # batches that are prepared beforehand
Inputs = TypeVar("Inputs")
Answer = TypeVar("Answer")


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def by_image(examples: Sequence[Example], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of up to `batch_size` questions, those about an image side by side.

    Images with as many questions and of like length stand together, so that there is little padding; the largest come
    first.
    """
    groups: dict[tuple[str, ...] | int, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(media_key(example) or index, []).append(index)
    pieces = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    pieces.sort(key=lambda piece: (-len(piece), -max(lengths[index] for index in piece)))
    batches: list[list[int]] = []
    for piece in pieces:
        if not batches or len(batches[-1]) + len(piece) > batch_size:
            batches.append([])
        batches[-1] += piece
    return batches


def share_of(batches: Sequence[list[int]], skip: Collection[int], rank: int, ranks: int) -> list[list[int]]:
    """This rank's batches, without the indices in `skip`; the ranks take them in turn.

    What is left of a batch stays one: a question is asked in the same company, whatever was answered before.
    """
    left = [[index for index in batch if index not in skip] for batch in batches]
    return [batch for batch in left if batch][rank::ranks]


@torch.inference_mode()
def answer_in_batches(
    model: Any,
    batches: Sequence[list[int]],
    prepare: Callable[[list[int]], Inputs],
    answer: Callable[[list[int], Inputs], Sequence[Answer]],
    description: str,
    on_batch: Callable[[Mapping[int, Answer]], None] | None = None,
    ahead: int = AHEAD,
) -> dict[int, Answer]:
    """Index -> answer, with a progress bar in questions a second.

    Args:
        description: before the bar; empty: there is none.
        prepare: makes a batch's inputs; it runs in a thread of its own, where nobody else may use what it uses.
        answer: gives the answers to a batch, in its order.
        on_batch: is told of the answers to each batch as soon as they are there.
        ahead: batches that are prepared beforehand; 0: no thread.
    """
    answers: dict[int, Answer] = {}
    was_training = model.training
    model.eval()
    try:
        with (
            contextlib.closing(prepared(batches, prepare, ahead)) as ready,
            tqdm(
                total=sum(map(len, batches)),
                desc=description,
                unit=" questions",
                mininterval=0.5,
                leave=None,
                disable=not description,
            ) as bar,
        ):
            for batch, inputs in ready:
                found = dict(zip(batch, answer(batch, inputs), strict=True))
                if on_batch is not None:
                    on_batch(found)
                answers |= found
                bar.update(len(batch))
    finally:
        model.train(was_training)
    return answers


def prepared(
    batches: Sequence[list[int]], prepare: Callable[[list[int]], Inputs], ahead: int = AHEAD
) -> Generator[tuple[list[int], Inputs]]:
    """Each batch with its inputs, of which a thread makes up to `ahead` beforehand.

    What `prepare` raises is raised when the batch's turn has come. Closing the iterator ends the thread.
    """
    if ahead == 0:
        yield from ((batch, prepare(batch)) for batch in batches)
        return
    waiting: deque[tuple[list[int], Future[Inputs]]] = deque()
    pool = ThreadPoolExecutor(1, "prepare")
    try:
        for batch in batches:
            waiting.append((batch, pool.submit(prepare, batch)))
            if len(waiting) > ahead:
                first, inputs = waiting.popleft()
                yield first, inputs.result()
        for rest, inputs in waiting:
            yield rest, inputs.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
