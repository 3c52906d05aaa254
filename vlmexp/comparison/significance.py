"""Whether a difference between two runs on the same examples is more than luck."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
_CELLS = 4_000_000  # drawn at a time: 32 MB


def sign_test(gains: int, losses: int) -> float:
    """The two-sided exact p value of `gains` against `losses` if either were as likely: ties do not count.

    For scores that are 0 or 1 this is McNemar's test in its exact, binomial form; for scores in between it is the sign
    test.

    Source: McNemar, Note on the sampling error of the difference between correlated proportions or percentages,
    Psychometrika 12 (1947); Dixon and Mood, The statistical sign test, JASA 41 (1946).
    """
    n = gains + losses
    term = tail = 1  # binomial coefficients (n over k), summed up to the smaller of the two numbers
    for k in range(min(gains, losses)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / 2**n)


def bootstrap_mean(values: Sequence[float], seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of the values.

    Resampling n values is drawing how often each distinct value comes up, which is multinomial; so a metric with few
    distinct values costs next to nothing, whatever n is.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.

    Raises:
        ValueError: there are no values.
    """
    if not len(values):
        raise ValueError("There are no values to resample.")
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    n = int(counts.sum())
    generator, rows = np.random.default_rng(seed), max(1, _CELLS // len(distinct))
    means: list[float] = []
    while len(means) < RESAMPLES:
        size = min(rows, RESAMPLES - len(means))
        draws = generator.multinomial(n, counts / n, size=size)  # [resample x distinct value]
        means.extend(draws @ distinct / n)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
