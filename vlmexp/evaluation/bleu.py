"""BLEU of sacrebleu (Post, https://arxiv.org/abs/1804.08771), each example cut into words as its script is written.

The tokenizers are sacrebleu's: `13a` for Latin letters, its default and that of published scores; `zh` for Chinese;
`char` for Japanese and for the scripts of South East Asia, which write no spaces; `intl` for all others, whose
punctuation `13a` does not know. The answers decide, and where they have no letters, the other examples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache
from typing import Any

import regex

from vlmexp.evaluation.words import composed, words

LONGEST = 4  # words of an n-gram
DEFAULT = "13a"
_SCRIPTS = {  # of the first letter of a word -> tokenizer
    "zh": regex.compile(r"[\p{Han}\p{Bopomofo}]"),
    "char": regex.compile(r"[\p{Hiragana}\p{Katakana}\u30fc\p{Line_Break=SA}]"),
    "13a": regex.compile(r"\p{Latin}"),
    "intl": regex.compile(r"\p{L}"),
}


def bleu(prediction: str, answers: Sequence[str]) -> float:
    """Sentence BLEU: effective order, exponential smoothing."""
    from sacrebleu import sentence_bleu

    if not answers:
        return 0.0
    name = _tokenizer_of(tuple(answers)) or DEFAULT
    return float(sentence_bleu(composed(prediction), list(map(composed, answers)), tokenize=name).score) / 100


def corpus_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Corpus BLEU; every prediction may have its own number of references.

    A prediction without any is compared with an empty one: all that it says is wrong.
    """
    from sacrebleu.metrics.bleu import BLEU

    said, meant = _cut(predictions, answers)
    meant = [given or [""] for given in meant]
    width = max(map(len, meant), default=0)
    # sacrebleu takes None where a prediction has fewer references than others.
    streams: list[Any] = [[given[k] if k < len(given) else None for given in meant] for k in range(width)]
    return float(BLEU(tokenize="none", force=True).corpus_score(said, streams).score) / 100 if width else 0.0


def why_no_bleu(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> str | None:
    """Why corpus BLEU, which is made of runs of four words, has no value here; None if it has one."""
    said, meant = _cut(predictions, answers)
    if not _has_longest(text for given in meant for text in given):
        return "fewer than four words"
    return None if _has_longest(said) else "predictions of fewer than four words"


def tokenizers(answers: Sequence[Sequence[str]]) -> list[str]:
    """sacrebleu's name of the tokenizer of each example."""
    found = [_tokenizer_of(tuple(given)) for given in answers]
    known = Counter(name for name in found if name)
    usual = known.most_common(1)[0][0] if known else DEFAULT
    return [name or usual for name in found]


@lru_cache(maxsize=2**16)
def _tokenizer_of(answers: tuple[str, ...]) -> str | None:
    """The tokenizer for the script of most words; None where there is no letter."""
    count = Counter(
        next((name for name, script in _SCRIPTS.items() if script.match(word)), None)
        for answer in answers
        for word in words(answer)
    )
    del count[None]
    if count["char"]:  # Chinese characters among Japanese ones
        count["char"] += count.pop("zh", 0)
    return max(count, key=lambda name: count[name]) if +count else None


def _cut(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Predictions and answers with a space between tokens."""
    tokenize = [_tokenizer(name) for name in tokenizers(answers)]
    said = [cut(composed(text)) for cut, text in zip(tokenize, predictions, strict=True)]
    return said, [[cut(composed(text)) for text in given] for cut, given in zip(tokenize, answers, strict=True)]


@cache
def _tokenizer(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=name).tokenizer


def _has_longest(texts: Iterable[str]) -> bool:
    return any(len(text.split()) >= LONGEST for text in texts)
