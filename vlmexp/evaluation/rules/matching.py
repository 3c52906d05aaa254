"""Whether a response holds or equals an accepted answer, as GQA, OCRBench and MMMU's open questions count it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from vlmexp.evaluation.rules.letters import unpunctuated

# Full-width forms of ASCII, and the ideographic space.
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | {0x3000: 0x20}
# Behind which MMMU looks for an answer in a sentence; the last only in the last sentence.
_KEYS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_LAST_KEY = "="
_SENTENCES = re.compile(r"\.\s(?=[A-Z])|\n")
_MARKS = set(":,.!?;'")
_NUMBERS = tuple(
    re.compile(pattern)
    for pattern in (
        r"-?\b\d{1,3}(?:,\d{3})+\b",
        r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
        r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
    )
)


def gqa(response: str, answers: Sequence[str]) -> bool:
    """GQA (Hudson and Manning, https://arxiv.org/abs/1902.09506) as lmms-eval matches it: without case and punctuation.

    Punctuation is deleted and leaves no blank; blanks beside it stay.
    """
    return any(unpunctuated(response) == unpunctuated(answer) for answer in answers)


def ocrbench(response: str, answers: Sequence[str], is_formula: bool) -> bool:
    """OCRBench (Liu et al., https://arxiv.org/abs/2305.07895): an answer is in the response, whatever its case.

    Args:
        is_formula: a row of HME100k, where case counts and blanks do not.
    """
    plain = _formula if is_formula else _line
    return any(plain(answer) in plain(response) for answer in answers)


def mmmu_open(response: str, answers: Sequence[str]) -> bool:
    """The rule of MMMU (https://arxiv.org/abs/2311.16502) for open questions.

    Numbers are equal to two decimals; a text is right where an accepted one is in it. What is looked at are the ends of
    sentences behind words such as "is" and "answer", and the numbers there.
    """
    said = [value for text in _candidates(response) for value in _normalised(text)]
    meant = [value for answer in answers for value in _normalised(answer)]
    texts = [value for value in meant if isinstance(value, str)]
    return any(
        any(text in value for text in texts) if isinstance(value, str) else value in meant for value in said
    )  # fmt: skip


def _line(text: str) -> str:
    return text.lower().strip().replace("\n", " ").translate(_NARROW)


def _formula(text: str) -> str:
    return text.strip().replace("\n", " ").replace(" ", "")


def _candidates(response: str) -> list[str]:
    ends = list(_ends_of_sentences(response.strip().strip(".").lower())) or [response.strip().strip(".").lower()]
    return ends + [number for end in ends for pattern in _NUMBERS for number in pattern.findall(end)]


def _ends_of_sentences(text: str) -> Iterator[str]:
    *before, last = _SENTENCES.split(text)
    for sentence, keys in [*((sentence, _KEYS) for sentence in before), (last, (*_KEYS, _LAST_KEY))]:
        found = [sentence.split(key)[-1].strip() for key in keys if key in sentence]
        shortest = min(found, key=len, default="")
        if shortest and shortest not in _MARKS:
            yield shortest


def _normalised(text: str) -> list[str | float]:
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        lower = text.lower()
        return [f" {lower}", f"{lower} "] if len(lower) == 1 else [lower]
