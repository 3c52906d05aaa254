from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.conftest import example
from vlmexp.evaluation.batches import by_image, by_length, prepared, share_of


def test_batches_keep_an_image_together():
    photos = [Path(name) for name in ("a", "b", "c")]
    asked = [example("?", "", photos[k % 3], id=str(k)) for k in range(7)] + [example("?", "", id="7")]
    assert by_image(asked, [10, 30, 20, 10, 30, 20, 10, 5], 4) == [[0, 3, 6], [1, 4, 2, 5], [7]]
    assert by_image(asked, [10] * 8, 2) == [[0, 3], [1, 4], [2, 5], [6, 7]]
    assert by_length([3, 9, 5], 2) == [[1, 2], [0]]


def test_ranks_take_in_turn_what_is_left_of_the_batches():
    batches = [[4, 1], [0, 2], [3, 5], [6]]
    assert share_of(batches, {0, 2, 3}, 0, 1) == [[4, 1], [5], [6]]
    assert share_of(batches, {0, 2, 3}, 0, 2) == [[4, 1], [6]]
    assert share_of(batches, {0, 2, 3}, 1, 2) == [[5]]
    assert share_of(batches, range(7), 0, 2) == []


@pytest.mark.parametrize("ahead", [0, 1, 2, 9])
def test_batches_are_prepared_in_order_and_not_too_far_ahead(ahead):
    made: list[int] = []

    def prepare(batch: list[int]) -> int:
        made.extend(batch)
        return batch[0] * 10

    seen = []
    for batch, inputs in prepared([[number] for number in range(6)], prepare, ahead):
        assert batch[0] in made
        assert len(made) <= len(seen) + 1 + ahead
        seen.append(inputs)
    assert seen == [0, 10, 20, 30, 40, 50]
    assert made == [0, 1, 2, 3, 4, 5]


def test_an_error_comes_when_its_batch_has_its_turn():
    def prepare(batch: list[int]) -> int:
        if batch == [2]:
            raise ValueError("no batch 2")
        return batch[0]

    ready = prepared([[0], [1], [2], [3]], prepare)
    assert [next(ready)[1], next(ready)[1]] == [0, 1]
    with pytest.raises(ValueError, match="no batch 2"):
        next(ready)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]


def test_closing_ends_the_thread_and_drops_what_waits():
    started, go_on, made = threading.Event(), threading.Event(), []

    def prepare(batch: list[int]) -> int:
        made.append(batch[0])
        if batch[0] == 1:
            started.set()
            go_on.wait()
        return batch[0]

    ready = prepared([[number] for number in range(5)], prepare)
    next(ready)
    started.wait()
    go_on.set()
    ready.close()
    assert made[:2] == [0, 1]
    assert len(made) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("prepare")]
