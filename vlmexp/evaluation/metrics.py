"""Metrics: pure functions of one prediction and its accepted answers, or of a whole corpus if so defined.

Each is a value between 0 and 1, CIDEr between 0 and 10.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from vlmexp.evaluation.cider import corpus_cider
from vlmexp.evaluation.qa import anls, multiple_choice_accuracy, relaxed_accuracy, token_f1
from vlmexp.evaluation.vqa import normalised, tidied, vqa_accuracy

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


def bleu(prediction: str, answers: Sequence[str]) -> float:
    """Sentence BLEU of sacrebleu (Post, https://arxiv.org/abs/1804.08771): effective order, exponential smoothing."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(prediction, list(answers)).score) / 100 if answers else 0.0


def corpus_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU of sacrebleu, 13a tokenisation; every prediction may have its own number of references.

    A prediction without any is compared with an empty one: all that it says is wrong.
    """
    from sacrebleu.metrics.bleu import BLEU

    answers = [given or [""] for given in answers]
    width = max(map(len, answers), default=0)
    # sacrebleu takes None where a prediction has fewer references than others.
    streams: list[Any] = [[given[k] if k < len(given) else None for given in answers] for k in range(width)]
    return float(BLEU().corpus_score(list(predictions), streams).score) / 100 if width else 0.0


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(ROUGE, use_stemmer=False)


def rouge(prediction: str, answers: Sequence[str]) -> dict[str, float]:
    """ROUGE-1, -2 and -L F-measures of rouge-score (Lin 2004), of the best reference for each."""
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
