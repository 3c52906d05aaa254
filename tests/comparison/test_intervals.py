from __future__ import annotations

import pytest

from vlmexp.comparison.rows import mean_and_deviation
from vlmexp.evaluation.intervals import wilson


@pytest.mark.parametrize(
    ("mean", "n", "low", "high"),
    [
        (0.8, 10, 0.490162, 0.943318),
        (0.0, 10, 0.0, 0.277533),
        (1.0, 10, 0.722467, 1.0),
        (0.5, 100, 0.403832, 0.596168),
    ],
)
def test_wilson_in_the_literature(mean, n, low, high):
    """8 of 10, 0 of 10 and 50 of 100, whose intervals stand in text books."""
    assert wilson(mean, n) == pytest.approx((low, high), abs=1e-6)


def test_wilson_by_hand():
    """With z = 1 and 1 of 2: centre (1/2 + 1/4) / (3/2) = 1/2, half width sqrt(1/8 + 1/16) / (3/2) = 0.288675."""
    assert wilson(0.5, 2, z=1.0) == pytest.approx((0.211325, 0.788675), abs=1e-6)


@pytest.mark.parametrize(("mean", "n"), [(1.1, 10), (-0.1, 10), (0.5, 0)])
def test_wilson_needs_a_share_of_something(mean, n):
    with pytest.raises(ValueError, match="no Wilson interval"):
        wilson(mean, n)


def test_the_deviation_is_that_of_a_sample():
    assert mean_and_deviation([1.0, 2.0, 6.0]) == (3.0, pytest.approx(7**0.5))
    assert mean_and_deviation([2.5]) == (2.5, None)
    with pytest.raises(ValueError, match="no values"):
        mean_and_deviation([])
