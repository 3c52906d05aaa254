"""Benchmarks of questions that are answered by yes or no."""

from __future__ import annotations

from collections.abc import Sequence


def pope(response: str) -> str:
    """POPE: `yes` or `no` in any case and nothing else; any other response as it is, in lower case."""
    return response.lower().strip()


def pope_values(said: Sequence[str], meant: Sequence[str]) -> dict[str, float]:
    """POPE's figures (Li et al., https://arxiv.org/abs/2305.10355) of normalised responses and answers.

    A response that is neither yes nor no is wrong, and neither a positive nor a negative one. The yes ratio is that of
    the answers, as in lmms-eval; that of the responses is `pope_yes_said`.
    """
    pairs = list(zip(said, meant, strict=True))
    hits, false_alarms, missed = (pairs.count(pair) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes")))
    precision = hits / (hits + false_alarms) if hits + false_alarms else 0.0
    recall = hits / (hits + missed) if hits + missed else 0.0
    both = precision + recall
    return {
        "pope_precision": precision,
        "pope_recall": recall,
        "pope_f1_score": 2 * precision * recall / both if both else 0.0,
        "pope_yes_ratio": list(meant).count("yes") / len(pairs),
        "pope_yes_said": list(said).count("yes") / len(pairs),
    }


def mme(response: str) -> str:
    """MME (Fu et al., https://arxiv.org/abs/2306.13394): yes, no or other, from the first four characters.

    So `Not sure` and `None` are no, and `Yesterday` is yes.
    """
    text = response.lower().strip().replace(".", "")
    if len(text) == 1:
        return {"y": "yes", "n": "no"}.get(text, "other")
    return next((word for word in ("yes", "no") if word in text[:4]), "other")
