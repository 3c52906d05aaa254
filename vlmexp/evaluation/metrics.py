"""Metrics: pure functions of one prediction and its accepted answers, or of a whole corpus if so defined.

Each is a value between 0 and 1, CIDEr between 0 and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import cache
from typing import Any

from vlmexp.evaluation.bleu import bleu, corpus_bleu, why_no_bleu
from vlmexp.evaluation.cider import corpus_cider
from vlmexp.evaluation.qa import anls, multiple_choice_accuracy, relaxed_accuracy, token_f1
from vlmexp.evaluation.vqa import normalised, tidied, vqa_accuracy
from vlmexp.evaluation.words import words

__all__ = [
    "CORPUS_METRICS", "METRICS", "anls", "bleu", "corpus_bleu", "corpus_cider", "exact_match",
    "multiple_choice_accuracy", "relaxed_accuracy", "rouge", "token_f1", "vqa_accuracy",
]  # fmt: skip

ROUGE = ["rouge1", "rouge2", "rougeL"]  # the values of `rouge`
ANNOTATORS = 10  # of VQA v2, whose accuracy is defined for ten answers


def annotated_vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy; a single answer counts as if all ten annotators had given it."""
    return vqa_accuracy(prediction, list(answers) * ANNOTATORS if len(answers) == 1 else answers)


def exact_match(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction equals an accepted answer after VQA normalisation, else 0."""
    said = normalised(tidied(prediction))
    return float(any(said == normalised(tidied(answer)) for answer in answers))


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(ROUGE, tokenizer=_Words())


class _Words:
    """What rouge-score takes for a tokenizer; its own keeps nothing but a to z and digits."""

    def tokenize(self, text: str) -> list[str]:
        return words(text)


def rouge(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measures of rouge-score (Lin 2004), words of any script, of the best reference for each."""
    if not answers:
        return dict.fromkeys(ROUGE, 0.0)
    scores = _rouge_scorer().score_multi(list(answers), prediction)
    return {name: float(score.fmeasure) for name, score in scores.items()}


Metric = Callable[[str, Sequence[str]], float | dict[str, float]]
CorpusMetric = Callable[[Sequence[str], Sequence[Sequence[str]]], float]

METRICS: dict[str, Metric] = {
    "vqa_accuracy": annotated_vqa_accuracy,
    "exact_match": exact_match,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "token_f1": token_f1,
    "multiple_choice_accuracy": multiple_choice_accuracy,
    "bleu": bleu,
    "rouge": rouge,
}
# Metrics that are defined for a corpus: the mean over examples is another value, or there is none for one example.
CORPUS_METRICS: dict[str, CorpusMetric] = {"bleu": corpus_bleu, "cider": corpus_cider}


def without_value(
    metrics: Collection[str], predictions: Sequence[str], answers: Sequence[Sequence[str]]
) -> dict[str, str]:
    """The names of the metrics' values that do not exist for texts as short as these, and why."""
    reasons = {}
    if "bleu" in metrics and (reason := why_no_bleu(predictions, answers)):
        reasons["bleu"] = reason
    if "rouge" in metrics and not any(len(words(answer)) > 1 for given in answers for answer in given):
        reasons["rouge2"] = "fewer than two words"
    return reasons
