"""Metrics of question answering data sets other than VQA v2, each as its official evaluation computes it."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

import regex

from vlmexp.evaluation.words import folded, foreign_punctuation, pieces

ANLS_THRESHOLD = 0.5
RELAXED_TOLERANCE = 0.05
_ARTICLES = re.compile(r"\b(a|an|the)\b")
# A letter, and what shows that it is one of a choice and no word: not "a dog", nor "e.g.".
_CHOICE = re.compile(
    r"(?:^|\b(?i:answer|option|choice)(?: is)?:?\s*)[(\[]?([A-Za-z])"
    r"(?:[):\]]|\.(?!\w\.)|(?<=[A-Z]),|\s+(?:because|since)\b|$)"
)
# The same beyond English: the signs that other languages count choices with, and a letter behind their "answer".
_COUNTING = "[①-⑳ⓐ-ⓩ㉠-㉻]"
_LETTER = r"[\p{Cyrillic}\p{Greek}\p{Arabic}\p{Hebrew}\p{Devanagari}甲乙丙丁戊가나다라마바사아ㄱ-ㅎアイウエオ]"
_ANSWER_IS = "(?:答案|选项?|選項?|答え|正解|정답|답|(?i:ответ|вариант))(?:是|为|為|は|은|는)?:? *"
_FOREIGN_CHOICE = regex.compile(
    rf"^[(\[]?(?:({_COUNTING})[)\]]?|({_LETTER})(?:[):\]]|\.(?= *\w)))"
    rf"|{_ANSWER_IS}[(\[]?(?:({_COUNTING}|[A-Za-z]|{_LETTER})(?![A-Za-z0-9]))[)\].]?"
)


def anls(prediction: str, answers: Sequence[str]) -> float:
    """Average normalised Levenshtein similarity, of DocVQA and its kin; 0 where it is below 0.5.

    Source: Biten et al. (https://arxiv.org/abs/1907.00490) and the evaluation script of the Robust Reading Competition:
    upper and lower case and runs of white space are alike, lengths are those of the texts as given, in capitals.
    """
    prediction = folded(prediction)
    said = " ".join(prediction.lower().split())
    distances = []
    for answer in map(folded, answers):
        longest = max(len(answer.upper()), len(prediction.upper()))
        distances.append(_edit_distance(said, " ".join(answer.lower().split())) / longest if longest else 0.0)
    similarity = 1 - min(distances, default=1.0)
    return similarity if similarity >= ANLS_THRESHOLD else 0.0


def relaxed_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 if a number is within 5 % of an accepted one, or a text equals an accepted one whatever its case, else 0.

    Source: ChartQA (Masry et al., https://arxiv.org/abs/2203.10244) as Pix2Struct's official code evaluates it: a per
    cent sign divides by 100, and a target of 0 is compared as text.
    """
    return float(any(_relaxed_match(prediction, answer) for answer in answers))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """F1 of the words in common with the best answer, without articles and punctuation.

    Source: the official evaluation of SQuAD 2.0 (Rajpurkar et al., https://arxiv.org/abs/1806.03822). As in that of
    MLQA (Lewis et al., https://arxiv.org/abs/1910.07475) punctuation is that of all scripts, and where a script writes
    no spaces each character is a word.
    """
    return max((_f1(_squad_words(prediction), _squad_words(answer)) for answer in answers), default=0.0)


def multiple_choice_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """1 if the prediction chooses an accepted answer, by its letter or by its text, else 0.

    The letter may stand alone, before the text or behind "The answer is": "B", "(b)", "B. red", "①", "가) 빨강"; where
    only one of the two has a letter, the texts decide. The official evaluation of ScienceQA reads such forms of
    English as well (Lu et al., https://arxiv.org/abs/2209.09513).
    """
    return float(any(_same_choice(prediction, answer) for answer in answers))


def _edit_distance(one: str, other: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, start=1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (a != b))
    return row[-1]


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def _relaxed_match(prediction: str, answer: str) -> bool:
    prediction, answer = folded(prediction), folded(answer)
    said, meant = _number(prediction), _number(answer)
    if said is not None and meant:
        return abs(said - meant) / abs(meant) <= RELAXED_TOLERANCE
    return prediction.lower() == answer.lower()


def _squad_words(text: str) -> list[str]:
    text = folded(text).lower()
    punctuation = string.punctuation + foreign_punctuation(text)
    letters = "".join(letter for letter in text if letter not in punctuation)
    return [piece for word in _ARTICLES.sub(" ", letters).split() for piece in pieces(word)]


def _f1(said: list[str], meant: list[str]) -> float:
    if not said or not meant:
        return float(said == meant)
    common = sum((Counter(said) & Counter(meant)).values())
    return 2 * common / (len(said) + len(meant))


def _same_choice(prediction: str, answer: str) -> bool:
    (letter, text), (other_letter, other_text) = _choice(prediction), _choice(answer)
    if letter and other_letter:
        return letter == other_letter
    known = letter or other_letter
    if not known.isascii() and known == (other_text if letter else text):  # such a letter may also stand alone
        return True
    return _plain(prediction) == _plain(answer) or (text == other_text != "")


def _plain(text: str) -> str:
    return folded(text).replace("*", "").strip(" \t\n.()[]").lower()


def _choice(text: str) -> tuple[str, str]:
    """(the letter of a choice in lower case, the text behind it); ("", the whole text) if it names none."""
    text = folded(text).replace("*", "").strip()
    found = _CHOICE.search(text) or (None if text.isascii() else _FOREIGN_CHOICE.search(text))
    if found is None:
        return "", _plain(text)
    return found[found.lastindex or 1].lower(), _plain(text[found.end() :])
