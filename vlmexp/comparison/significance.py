"""Whether a difference between two runs on the same examples is more than luck."""

from __future__ import annotations


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
