"""The words of a caption as coco-caption sees them: the Penn Treebank's tokens in lower case without most punctuation.

Source: PTBTokenizer of Stanford CoreNLP 3.4.1 and the official code, coco-caption, ptbtokenizer.py, with its quirks: a
bracket becomes a word. What English captions hold is cut alike; web addresses, markup and smileys need not be. Words of
other scripts keep their marks, and where a script writes no spaces each character is a word.
"""

from __future__ import annotations

import regex

from vlmexp.evaluation.words import UNSPACED, composed

_QUOTES = {"\N{RIGHT SINGLE QUOTATION MARK}": "'", "\N{LEFT SINGLE QUOTATION MARK}": "'"}
_SAME = str.maketrans(_QUOTES | {"£": "#", "€": "$", "½": "1/2"})
_JOINED = regex.compile(r"\b(?:can(?=not\b)|(gon|wan)(?=na\b)|got(?=ta\b)|(lem|gim)(?=me\b)|y'(?!\s))|'t(?=is\b|was\b)")
_ENDINGS = regex.compile(r"(?<=[\w.])(?:n't|'(?:s|re|ve|ll|d|m))(?!\w)")
_LETTER = rf"(?:(?!{UNSPACED})[\w\p{{M}}])"
_WORD = regex.compile(
    rf"""
    (?<!\S)(?:n't|'(?:s|re|ve|ll|d|m|em|t(?!-)|n'|\d\ds?(?![:/])))(?!\w)    # the end of a contraction; 'n', '90s
    | (?:[a-z]\.){{2,}}(?!\w) | ph\.d\.                               # u.s.
    | (?:mr|mrs|ms|dr|prof|st|ave|blvd|mt|ft|dept|jr|sr|co|corp|inc|ltd|vs|etc|lt|gov|sgt|capt|gen)\.(?!\w)
    | no\.(?=\s?\d)
    | (?<!\S)[-+.]?\d+(?:[.,:]\d+)+ | (?<!\S)[-+.]\d+ | \d+(?:[.,:]\d+)+    # 10:30
    | \by'(?=\s)
    | (?:\b[ldo]'|\bma')?{_LETTER}+(?:[-./@_]{_LETTER}+)*                         # o'clock, two-year-old
    | (?={UNSPACED})\X
    | [!?]{{2,}}
    | [][(){{}}%$\#&+=*|~@/\\°¥]
    """,
    regex.VERBOSE,
)
_BRACKETS = dict(zip("()[]{}", ("-lrb-", "-rrb-", "-lsb-", "-rsb-", "-lcb-", "-rcb-"), strict=True))


def caption_words(text: str) -> list[str]:
    """The words that n-grams are made of.

    >>> caption_words("A man's dog (big) can't see 10:30, o'clock!")
    ['a', 'man', "'s", 'dog', '-lrb-', 'big', '-rrb-', 'ca', "n't", 'see', '10:30', "o'clock"]
    """
    text = _ENDINGS.sub(r" \g<0>", composed(text).translate(_SAME).lower())
    return [_BRACKETS.get(word, word) for word in _WORD.findall(_JOINED.sub(r"\g<0> ", text))]
