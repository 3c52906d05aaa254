"""CIDEr-D, the consensus of a description with what people wrote of the same image.

Source: Vedantam et al. (https://arxiv.org/abs/1411.5726) and the official code, coco-caption, ciderD_scorer.py.
The scores are those of the official code on the same words; what the words are says vlmexp.evaluation.caption_words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vlmexp.evaluation.caption_words import caption_words

Ngrams = Counter[tuple[str, ...]]

LONGEST = 4  # words of an n-gram
SIGMA = 6.0  # of the Gaussian penalty on a difference in length


def cider(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> list[float]:
    """CIDEr-D of each prediction, from 0 to 10; an n-gram's rarity is counted in the answers of all examples."""
    said = [_ngrams(text) for text in predictions]
    meant = [[_ngrams(text) for text in given] for given in answers]
    seen_in = Counter(gram for given in meant for gram in {gram for grams in given for gram in grams})
    log_count = math.log(max(len(predictions), 1))
    rarity = {gram: log_count - math.log(count) for gram, count in seen_in.items()}
    scores = []
    for grams, given in zip(said, meant, strict=True):
        similarities = [_similarity(grams, other, rarity, log_count) for other in given]
        scores.append(10 * sum(similarities) / len(given) if given else 0.0)
    return scores


def corpus_cider(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Mean CIDEr-D of a corpus."""
    return sum(cider(predictions, answers)) / len(predictions) if predictions else 0.0


def _ngrams(text: str) -> Ngrams:
    words = caption_words(text)
    return Counter(tuple(words[i : i + n]) for n in range(1, LONGEST + 1) for i in range(len(words) - n + 1))


def _similarity(said: Ngrams, meant: Ngrams, rarity: dict[tuple[str, ...], float], unseen: float) -> float:
    """Mean over n of the cosine of weighted n-grams, counts clipped to the reference's, times the length penalty."""
    lengths = [sum(count for gram, count in grams.items() if len(gram) == 2) for grams in (said, meant)]
    penalty = math.exp(-((lengths[0] - lengths[1]) ** 2) / (2 * SIGMA**2))
    total = 0.0
    for n in range(1, LONGEST + 1):
        one, other = (
            {gram: count * rarity.get(gram, unseen) for gram, count in grams.items() if len(gram) == n}
            for grams in (said, meant)
        )
        norm = math.hypot(*one.values()) * math.hypot(*other.values())
        shared = sum(min(weight, other[gram]) * other[gram] for gram, weight in one.items() if gram in other)
        total += shared / norm if norm else 0.0
    return penalty * total / LONGEST
