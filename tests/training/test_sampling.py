from __future__ import annotations

import itertools
import random

import pytest

from vlmexp.training.sampling import EpochSampler, by_length, by_media, shuffled

LENGTHS = [10 + (7 * k) % 50 for k in range(1000)]
KEYS = [f"image {k // 5 % 40}" for k in range(1000)]


@pytest.mark.parametrize(
    "order", [shuffled(1000), by_length(LENGTHS, 8), by_media(KEYS)], ids=["random", "length", "media"]
)
def test_an_epoch_is_every_example_once_in_an_order_of_its_own(order):
    sampler = EpochSampler(order, 1000, seed=0)
    first = list(sampler)
    assert sorted(first) == list(range(1000))
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    sampler.set_epoch(0)
    assert list(sampler) == first
    assert list(EpochSampler(order, 1000, seed=1)) != first


def test_a_batch_holds_examples_of_like_length_and_the_longest_comes_first():
    order = by_length(LENGTHS, 8)(random.Random(0))
    batches = [[LENGTHS[k] for k in order[i : i + 8]] for i in range(0, 1000, 8)]
    assert max(batches[0]) == max(LENGTHS)
    assert sum(max(batch) - min(batch) for batch in batches) / len(batches) < 5


def test_questions_of_an_image_follow_each_other():
    order = by_media(KEYS)(random.Random(0))
    changes = sum(KEYS[a] != KEYS[b] for a, b in itertools.pairwise(order))
    assert changes == len(set(KEYS)) - 1
