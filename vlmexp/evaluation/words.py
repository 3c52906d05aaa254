"""Texts and their words in any script.

The official metrics know ASCII. What they do there is done here to all of Unicode; a text of ASCII alone comes out as
it does there.
"""

from __future__ import annotations

import unicodedata

import regex

# Scripts that put no space between words: their words are single characters, those of South East Asia with all that
# stands above and below a letter.
UNSPACED = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\u30fc\p{Line_Break=SA}]"
_CHARACTER = rf"(?={UNSPACED})\X"
_WORD = regex.compile(rf"{_CHARACTER}|(?:(?!{UNSPACED})[\p{{L}}\p{{M}}\p{{N}}])+|\p{{Emoji_Presentation}}")
_PIECE = regex.compile(rf"{_CHARACTER}|(?:(?!{UNSPACED}).)+", regex.DOTALL)
_UNSEEN = regex.compile(r"\p{Default_Ignorable_Code_Point}")
# ASCII for what means the same; what has a full-width form is not listed.
_SAME = {
    "'": "\u2018\u2019\u201a\u201b\u02bc\u2032\u2039\u203a",
    '"': "\u201c\u201d\u201e\u201f\u2033\u00ab\u00bb\u300c\u300d\u300e\u300f\u300a\u300b\u3008\u3009",
    "-": "\u2010\u2011\u2012\u2013\u2014\u2015\u2212",
    ".": "\u3002\u0964\u06d4\u066b",
    ",": "\u3001\u060c\u066c",
    ";": "\u061b",
    "?": "\u061f",
    "%": "\u066a",
    "[": "\u3010\u3014",
    "]": "\u3011\u3015",
    "...": "\u2026",
    " ": "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f\u3000\u2028\u2029",
}
_TO_ASCII = str.maketrans({mark: plain for plain, marks in _SAME.items() for mark in marks})


def composed(text: str) -> str:
    """The text in NFC, full- and half-width forms in their usual width, without characters that nobody sees.

    >>> composed("\\uff22\\uff13 \\uff76\\uff9e re\\u0301sume\\u0301\\ufeff")
    'B3 ガ résumé'
    """
    if text.isascii():
        return text
    wide = (unicodedata.normalize("NFKC", c) if unicodedata.east_asian_width(c) in "FH" else c for c in text)
    return unicodedata.normalize("NFC", _UNSEEN.sub("", "".join(wide)))


def folded(text: str) -> str:
    """The composed text with ASCII for quotes, dashes, spaces and punctuation that mean the same.

    >>> folded("\\u201cit\\u2019s red\\u201d\\uff0cright\\uff1f")
    '"it\\'s red",right?'
    """
    return text if text.isascii() else composed(text).translate(_TO_ASCII)


def foreign_punctuation(text: str) -> str:
    """The punctuation in a text that is not of ASCII, each mark once."""
    if text.isascii():
        return ""
    return "".join(dict.fromkeys(c for c in text if not c.isascii() and unicodedata.category(c).startswith("P")))


def words(text: str) -> list[str]:
    """Runs of letters, marks and digits in lower case; of scripts without spaces, each character.

    >>> words("The iPhone-12, 红色; हिन्दी!")
    ['the', 'iphone', '12', '红', '色', 'हिन्दी']
    """
    found: list[str] = _WORD.findall(composed(text).lower())
    return found


def pieces(word: str) -> list[str]:
    """What stands between two spaces, cut where the script writes none.

    >>> pieces("b-52轰炸机")
    ['b-52', '轰', '炸', '机']
    """
    found: list[str] = _PIECE.findall(word)
    return found
