"""Metrics: pure functions of one prediction, its accepted answers and its row, or of a whole corpus if so defined.

Each is a value between 0 and 1, but CIDEr, which ends at 10, and MME's scores, which end at 2,000 and 800.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache
from typing import Any

from vlmexp.evaluation.bleu import bleu, corpus_bleu, why_no_bleu
from vlmexp.evaluation.cider import corpus_cider
from vlmexp.evaluation.coco_caption import NAMES as COCO_CAPTION
from vlmexp.evaluation.coco_caption import coco_caption
from vlmexp.evaluation.qa import anls, multiple_choice_accuracy, relaxed_accuracy, token_f1
from vlmexp.evaluation.rules import metrics as rules
from vlmexp.evaluation.rules.boxes import value_names
from vlmexp.evaluation.vqa import normalised, tidied, vqa_accuracy, vqa_accuracy_2015
from vlmexp.evaluation.words import words

__all__ = [
    "CORPUS_METRICS", "METRICS", "anls", "bleu", "coco_caption", "corpus_bleu", "corpus_cider", "exact_match",
    "multiple_choice_accuracy", "relaxed_accuracy", "rouge", "token_f1", "vqa_accuracy", "vqa_accuracy_2015",
]  # fmt: skip

ROUGE = ["rouge1", "rouge2", "rougeL"]  # the values of `rouge`


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


# Of (prediction, answers) or (prediction, answers, row), and of the lists of these; a corpus may have no value (None).
Metric = Callable[..., float | dict[str, float]]
CorpusMetric = Callable[..., float | Mapping[str, float | None]]

METRICS: dict[str, Metric] = {
    "vqa_accuracy": vqa_accuracy,
    "vqa_accuracy_2015": vqa_accuracy_2015,
    "exact_match": exact_match,
    "anls": anls,
    "relaxed_accuracy": relaxed_accuracy,
    "token_f1": token_f1,
    "multiple_choice_accuracy": multiple_choice_accuracy,
    "bleu": bleu,
    "rouge": rouge,
    "gqa_accuracy": rules.gqa_accuracy,
    "aokvqa_direct": rules.aokvqa_direct,
    "ai2d_accuracy": rules.ai2d_accuracy,
    "scienceqa_accuracy": rules.scienceqa_accuracy,
    "seedbench_accuracy": rules.seedbench_accuracy,
    "realworldqa_accuracy": rules.realworldqa_accuracy,
    "ocrbench_accuracy": rules.ocrbench_accuracy,
    "mmmu": rules.mmmu_accuracy,
    "mmstar": rules.mmstar_accuracy,
    "mmbench": rules.mmbench_accuracy,
    "pope": rules.pope_accuracy,
    "mme": rules.mme_accuracy,
    "refcoco_rec": rules.refcoco_rec,
    "refcoco_grounding": rules.refcoco_grounding,
    "box_iou": rules.box_iou,
}
# Metrics that are defined for a corpus: the mean over examples is another value, or there is none for one example.
CORPUS_METRICS: dict[str, CorpusMetric] = {
    "bleu": corpus_bleu,
    "cider": corpus_cider,
    "coco_caption": coco_caption,
    "mmstar": rules.mmstar,
    "mmbench": rules.mmbench,
    "pope": rules.pope,
    "mme": rules.mme,
}
# The values of ours that do not give one of their own name, the main one first.
VALUES: dict[str, list[str]] = {
    "rouge": ROUGE,
    "coco_caption": COCO_CAPTION,
    "aokvqa_direct": ["aokvqa_direct_accuracy"],
    "mmmu": ["mmmu_accuracy", "mmmu_unread"],
    "mmstar": ["mmstar_average", "mmstar_accuracy"],
    "mmbench": ["mmbench_circular", "mmbench_accuracy"],
    "pope": ["pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio", "pope_yes_said"],
    "mme": ["mme_perception_score", "mme_cognition_score", "mme_accuracy"],
    "refcoco_rec": value_names("refcoco"),
    "refcoco_grounding": value_names("grounding"),
    "box_iou": [*value_names("box"), "box_unread"],
}


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
