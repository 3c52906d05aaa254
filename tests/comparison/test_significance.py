from __future__ import annotations

import numpy as np
import pytest

from vlmexp.comparison.significance import sign_test
from vlmexp.evaluation.intervals import numbered, resampled_mean


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
    assert resampled_mean([0.0] * 10 + [1.0] * 10, resamples=10_000) == (0.3, 0.7)


def test_the_bootstrap_of_many_values_is_near_the_normal():
    values = np.arange(401) / 200 - 1  # mean 0, standard deviation 0.57879: the interval is 1.96 x 0.57879 / sqrt(401)
    assert resampled_mean(values, resamples=10_000) == pytest.approx((-0.05665, 0.05665), abs=2e-3)


def test_the_bootstrap_is_the_same_every_time():
    values = [0.1, 0.4, 0.35, 0.8, 0.9]
    assert resampled_mean(values, seed=3) == resampled_mean(values, seed=3)
    assert resampled_mean(values, seed=3) == resampled_mean(list(reversed(values)), seed=3)
    assert resampled_mean([0.25] * 7) == (0.25, 0.25)
    with pytest.raises(ValueError, match="no values"):
        resampled_mean([])


def test_the_bootstrap_of_clusters_is_that_of_the_cluster_robust_variance():
    """Five questions an image: the closed form is sqrt(sum over images of (sum - 5 mean)^2) / n, times 1.96.

    Source: Liang and Zeger, Longitudinal data analysis using generalized linear models, Biometrika 73 (1986).
    """
    generator = np.random.default_rng(7)
    ease = generator.beta(1, 1, 400)  # some images are easy and some are hard
    values = (generator.random((400, 5)) < ease[:, None]).astype(float)
    clusters = np.repeat(np.arange(400), 5).tolist()
    low, high = resampled_mean(values.ravel().tolist(), clusters, resamples=10_000)
    half = 1.959964 * np.sqrt(((values.sum(1) - 5 * values.mean()) ** 2).sum()) / values.size
    assert (low + high) / 2 == pytest.approx(values.mean(), abs=1e-3)
    assert (high - low) / 2 == pytest.approx(half, rel=0.03)
    of_questions = resampled_mean(values.ravel().tolist(), resamples=10_000)
    assert (high - low) / (of_questions[1] - of_questions[0]) == pytest.approx(1.53, abs=0.1)  # sqrt(1 + 4 / 3)


def test_only_equal_media_are_one_cluster():
    assert numbered(["a", "b", None, "a", None]) == [0, 1, 2, 0, 4]
