from __future__ import annotations

import numpy as np
import pytest

from vlmexp.comparison.significance import bootstrap_mean, sign_test


@pytest.mark.parametrize(
    ("gains", "losses", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 0.0625),  # 2 / 2^5
        (0, 5, 0.0625),
        (8, 2, 0.109375),  # 2 (1 + 10 + 45) / 2^10
        (3, 3, 1.0),
        (10, 1, 0.01171875),  # 2 (1 + 11) / 2^11
    ],
)
def test_the_sign_test_by_hand(gains, losses, p):
    assert sign_test(gains, losses) == p


def test_the_sign_test_is_exact_for_many_examples():
    assert sign_test(5200, 4800) == pytest.approx(6.607e-05, rel=5e-3)  # the normal distribution's beyond 399 / 100
    assert sign_test(10_000, 0) == 0.0  # 2^-9999 is smaller than any float


def test_the_bootstrap_of_two_values_is_the_binomial():
    """Ten zeros and ten ones: a resample's sum is binomial(20, 1/2), whose 2.5 % and 97.5 % quantiles are 6 and 14."""
    assert bootstrap_mean([0.0] * 10 + [1.0] * 10) == (0.3, 0.7)


def test_the_bootstrap_of_many_values_is_near_the_normal():
    values = np.arange(401) / 200 - 1  # mean 0, standard deviation 0.57879: the interval is 1.96 x 0.57879 / sqrt(401)
    assert bootstrap_mean(values) == pytest.approx((-0.05665, 0.05665), abs=2e-3)


def test_the_bootstrap_is_the_same_every_time():
    values = [0.1, 0.4, 0.35, 0.8, 0.9]
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(values, seed=3)
    assert bootstrap_mean(values, seed=3) == bootstrap_mean(list(reversed(values)), seed=3)
    assert bootstrap_mean([0.25] * 7) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        bootstrap_mean([])
