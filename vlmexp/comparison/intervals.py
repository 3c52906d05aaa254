"""Intervals that need no more than a mean and how many examples it is of."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z_95 = 1.959963984540054  # the standard normal distribution's 97.5 % quantile


def wilson(mean: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """The score interval of a mean of n values between 0 and 1.

    It is exact in its definition for values that are 0 or 1. For values in between, such as the VQA accuracy of ten
    annotators, it is too wide and never too narrow in its variance: of all distributions on [0, 1] with a given mean,
    that of zeros and ones varies most.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).

    Raises:
        ValueError: the mean is not between 0 and 1, or there are no examples.
    """
    if not 0 <= mean <= 1 or n < 1:
        raise ValueError(f"A mean of {mean} over {n} examples has no Wilson interval.")
    centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and sample standard deviation (divided by n - 1); None for a single value.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("There are no values.")
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
