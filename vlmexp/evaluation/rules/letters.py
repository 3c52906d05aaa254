"""The letter of a choice in a response, as different benchmarks read it.

A reader gives a capital letter, or "" where its rule finds none; no letter is ever drawn at random.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable, Mapping, Sequence

from vlmexp.data.letters import letter

_ASCII_PUNCTUATION = str.maketrans("", "", string.punctuation)
_AI2D = re.compile(r"\s*([A-Z])\.")
# What is taken from both ends of a response, one mark after the other: MMMU's, and those of the general reader.
_MMMU_ENDS = ",.!?;:'"
_ENDS = ",.!?;:'\""
_WORDS_OF_A_SENTENCE = 5  # MMMU looks for the text of a choice in responses with more words than these
# After which a letter is meant, of the general reader; in lower case.
_PHRASES = (
    "the answer is", "answer is", "answer:", "the correct answer is", "correct answer is", "the correct option is",
    "correct option is", "i choose", "i select", "option is", "choice is", "the answer should be", "정답은", "答案是",
    "正确答案是", "答えは",
)  # fmt: skip
# MMBench's signs around a letter that stands as a word, in the order in which they are tried.
_MMBENCH_SIGNS = ("{}.", "{},", "{}:", "{})", "{}).", "({})", "({}).", ":{}", ":{},", ":{}.", ":{})", ":{}).")
_FEW_WORDS = 3  # up to which "A" is a letter for MMBench and no article


def unpunctuated(text: str) -> str:
    """In lower case and without ASCII punctuation; blanks stay as they are."""
    return text.lower().translate(_ASCII_PUNCTUATION)


def whole_or_dotted(response: str) -> str:
    """AI2D: a capital letter with a period at the beginning, else the whole response; to be compared unpunctuated."""
    found = _AI2D.match(response)
    return found[1] if found else response


def lone_or_dotted(response: str) -> str:
    """ScienceQA: the whole response in any case, or a capital letter at its beginning with a period behind it."""
    if len(response) == 1:
        return response.upper()
    return response[0] if response[1:2] == "." and response[0] in string.ascii_uppercase else ""


def first_character(response: str) -> str:
    """SEED-Bench: the first character, whatever follows: `Because ...` is B."""
    return response[:1].upper()


def mmmu(response: str, choices: Sequence[str]) -> str:
    """MMMU (Yue et al., https://arxiv.org/abs/2311.16502): `(B)`, else `B `, else `B.`, else a choice's text.

    Of several found in one of these ways the last in the response is meant. Where nothing is found the official code
    draws a letter; here it is "".
    """
    texts = {letter(number): text for number, text in enumerate(choices)}
    padded = f" {_without_ends(response, _MMMU_ENDS)} "
    for written, sought in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if found := [name for name in texts if written.format(name) in padded]:
            places = {name: padded.rfind(sought.format(name)) for name in found}
            return max(found, key=places.__getitem__)
    if len(padded.split()) <= _WORDS_OF_A_SENTENCE:
        return ""
    places = {name: padded.lower().rfind(text.lower()) for name, text in texts.items()}
    return max((name for name, place in places.items() if place >= 0), key=places.__getitem__, default="")


def mmbench(response: str, choices: Mapping[str, str]) -> str:
    """MMBench (Liu et al., https://arxiv.org/abs/2307.06281), its reader without a judge model; "" if it reads nothing.

    One of A to E as a word of its own; else with punctuation about it; else the only choice whose text is in the
    response.

    Args:
        choices: letter -> text. Letters beyond A to D count without a text.
    """
    words = response.split()
    alone = [name for name in "ABCDE" if name in words]
    if len(alone) == 1 and not (alone == ["A"] and len(words) > _FEW_WORDS):
        return alone[0]
    for sign in _MMBENCH_SIGNS:
        found = [name for name in "ABCDE" if sign.format(name) in words]
        if len(found) == 1:
            return found[0]
    lower = response.lower()
    told = [name for name, text in choices.items() if name in "ABCD" and text.lower() in lower]
    return told[0] if len(told) == 1 else ""


def anywhere(response: str, letters: str = "ABCD") -> str:
    """The general reader of MMStar and RealWorldQA in lmms-eval since April 2026; capital letters only.

    From the best to the weakest: at the beginning, at the end, behind a phrase such as "the answer is", `(B)`, `B.`,
    `B:`, `B)`, `B ` (inside words too); without any of these a capital letter anywhere. Of several of the best kind the
    last is meant.
    """
    bare = _without_ends(response.strip(), _ENDS)
    padded = f" {bare} "
    found: list[tuple[int, int, str]] = []  # (priority, position, letter)
    if bare[:1] in letters and bare and not bare[1:2].isalpha():
        found.append((10, 0, bare[0]))
    if bare[-1:] in letters and bare and not bare[-2:-1].isalpha():
        found.append((9, len(padded) - 2, bare[-1]))
    lower = padded.lower()
    for phrase in _PHRASES:
        start = lower.find(phrase)
        if start >= 0:
            behind = padded[start + len(phrase) :]
            found += [(7, start + len(phrase) + behind.find(name), name) for name in letters if name in behind]
    for priority, form in ((6, "({})"), (5, "{}."), (4, "{}:"), (3, "{})"), (2, "{} ")):
        found += [(priority, at, name) for name in letters if (at := padded.rfind(form.format(name))) >= 0]
    if not found:
        found = [(0, at, name) for name in letters if (at := padded.rfind(name)) >= 0]
    return max(found, default=(0, 0, ""))[2]


def _without_ends(text: str, marks: Iterable[str]) -> str:
    for mark in marks:
        text = text.strip(mark)
    return text
