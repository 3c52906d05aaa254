"""BLEU-1 to -4 and ROUGE-L as papers on captions give them.

Source: the official code, coco-caption (https://github.com/tylin/coco-caption), bleu_scorer.py and rouge.py, on the
words of vlmexp.evaluation.caption_words. Both differ from what sacrebleu and rouge-score compute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

from vlmexp.evaluation.caption_words import caption_words

NAMES = ["coco_bleu1", "coco_bleu2", "coco_bleu3", "coco_bleu4", "coco_rougeL"]
LONGEST = 4  # words of an n-gram
BETA = 1.2  # how much more recall counts than precision in ROUGE-L
# What the official code adds so that nothing is divided by zero.
_TINY, _SMALL = 1e-15, 1e-9

Words = list[str]


def coco_caption(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1 to -4 of the corpus, with the length of the closest reference, and the mean ROUGE-L."""
    said = [caption_words(text) for text in predictions]
    meant = [[caption_words(text) for text in given] for given in answers]
    pairs = [(one, given) for one, given in zip(said, meant, strict=True) if given]
    rouge = math.fsum(rouge_l(*pair) for pair in pairs) / len(said) if said else 0.0
    return dict(zip(NAMES, [*_bleu(pairs), rouge], strict=True))


def rouge_l(said: Words, meant: Sequence[Words]) -> float:
    """The weighted mean of the best precision and the best recall of a longest common subsequence."""
    common = [_common(said, other) for other in meant]
    precision = max(common) / len(said) if said else 0.0
    recall = max((n / len(other) for n, other in zip(common, meant, strict=True) if other), default=0.0)
    if not precision or not recall:
        return 0.0
    return (1 + BETA**2) * precision * recall / (recall + BETA**2 * precision)


def _bleu(pairs: Sequence[tuple[Words, Sequence[Words]]]) -> list[float]:
    lengths = sum(len(said) for said, _ in pairs)
    closest = sum(min((abs(len(o) - len(said)), len(o)) for o in meant)[1] for said, meant in pairs)
    values, product = [], 1.0
    for n in range(1, LONGEST + 1):
        guessed = sum(max(0, len(said) - n + 1) for said, _ in pairs)
        correct = sum(_matches(said, meant, n) for said, meant in pairs)
        product *= (correct + _TINY) / (guessed + _SMALL)
        values.append(product ** (1 / n))
    ratio = (lengths + _TINY) / (closest + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    return [value * penalty for value in values]


def _matches(said: Words, meant: Sequence[Words], n: int) -> int:
    """How many n-grams are in a reference, each at most as often as in that which has it most often."""
    most: Counter[tuple[str, ...]] = Counter()
    for other in meant:
        most |= _ngrams(other, n)
    return sum((_ngrams(said, n) & most).values())


def _ngrams(words: Words, n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def _common(one: Words, other: Words) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for a in one:
        diagonal = 0
        for j, b in enumerate(other, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if a == b else max(row[j], row[j - 1])
    return row[-1]
