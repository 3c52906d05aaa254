"""Which rows are shown, and how many are alike."""

from __future__ import annotations

import pytest

from vlmexp.preview.choice import grouped, positions, sample
from vlmexp.preview.survey import histogram

KEYS = ["a", "a", "b", "c", "b", "a", "d"]  # of seven rows: the media that each is about


def test_a_sample_has_each_medium_once_and_ends_with_the_longest():
    for seed in range(20):
        chosen = sample([0, 1, 2, 3, 5, 6], longest=5, keys=KEYS, count=3, seed=seed)
        assert chosen[-1] == 5
        assert len({KEYS[row] for row in chosen}) == 3
        assert 4 not in chosen
    assert len(sample([0, 1, 2, 3, 5, 6], longest=5, keys=KEYS, count=10, seed=0)) == 4
    assert sample([0, 1, 2], longest=0, keys=KEYS, count=1, seed=0) == [0]
    assert sample(range(7), 5, KEYS, 3, seed=1) == sample(range(7), 5, KEYS, 3, seed=1)


def test_a_group_is_all_rows_about_the_same_media():
    assert grouped([4, 3], KEYS) == [[4, 2], [3]]
    assert grouped([5, 0, 1], KEYS) == [[5, 0, 1]]


def test_ids_are_found_in_their_order():
    assert positions(["x-1", "x-2", "x-3"], ["x-3", "x-1"], "test") == [2, 0]
    assert positions(["x-1"], [], "test") == []


@pytest.mark.parametrize(
    ("values", "bins", "expected"),
    [
        ([], 4, []),
        ([7], 4, [(7, 7, 1)]),
        ([1, 2, 2, 3], 4, [(1, 1, 1), (2, 2, 2), (3, 3, 1)]),
        ([0, 5, 9, 9], 2, [(0, 4, 1), (5, 9, 3)]),
        ([10, 30], 2, [(10, 20, 1), (21, 31, 1)]),
    ],
)
def test_a_histogram_has_bins_of_one_width(values, bins, expected):
    assert histogram(values, bins) == expected
