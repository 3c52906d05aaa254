"""How far a mean over examples would move if other examples had been drawn."""

from __future__ import annotations

from collections.abc import Sequence

RESAMPLES = 1000
LEVEL = 0.95


def bootstrap_interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean, from 1,000 resamples; the same for the same values.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    import numpy as np

    # Only how often each value occurs matters, and metrics have few distinct values: a draw of counts is enough.
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    draws = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=RESAMPLES)
    means = draws @ distinct / len(values)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
