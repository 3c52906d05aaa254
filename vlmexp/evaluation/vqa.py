"""The answer normalisation of the official VQA evaluation, with its quirks.

Source: Antol et al. (https://arxiv.org/abs/1505.00468) and the official code, GT-Vision-Lab/VQA, vqaEval.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmexp.evaluation.words import folded, foreign_punctuation

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_AROUND_COMMA = re.compile(r"\d,\d")
# The official pattern: its first group is a lookahead for the text "<=" and a digit, which never holds before a period,
# so that only a digit after the period keeps it.
_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")
# The official code passes the flag re.UNICODE where re.sub takes the number of replacements.
_MOST_PERIODS = int(re.UNICODE)
_NUMBERS = {
    word: str(number)
    for number, words in enumerate(
        ["none zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
    for word in words.split()
}
_ARTICLES = {"a", "an", "the"}
# The official table: what a word without its apostrophe stands for. Each target is listed once, before the spellings
# that lead to it. Its entries with a capital letter are left out: words are in lower case when they are looked up.
_CONTRACTIONS = {
    spelling: target
    for line in """
ain't aint|aren't arent|can't cant|could've couldve|couldn't couldnt|couldn't've couldn'tve couldnt've|didn't didnt
doesn't doesnt|don't dont|hadn't hadnt|hadn't've hadnt've hadn'tve|hasn't hasnt|haven't havent|he'd hed
he'd've hed've he'dve|he's hes|how'd howd|how'll howll|how's hows|isn't isnt|it'd itd|it'd've itd've it'dve|it'll itll
ma'am maam|mightn't mightnt|mightn't've mightnt've mightn'tve|might've mightve|mustn't mustnt|must've mustve
needn't neednt|not've notve|o'clock oclock|oughtn't oughtnt|'ow's'at ow's'at 'ows'at 'ow'sat|shan't shant
she'd've shed've she'dve|should've shouldve|shouldn't shouldnt|shouldn't've shouldnt've shouldn'tve
somebodyd somebody'd|somebody'd've somebodyd've somebody'dve|somebody'll somebodyll|somebody's somebodys
someone'd someoned|someone'd've someoned've someone'dve|someone'll someonell|someone's someones
something'd somethingd|something'd've somethingd've something'dve|something'll somethingll|that's thats
there'd thered|there'd've thered've there'dve|there're therere|there's theres|they'd theyd|they'd've theyd've they'dve
they'll theyll|they're theyre|they've theyve|'twas twas|wasn't wasnt|we'd've wed've we'dve|we've weve|weren't werent
what'll whatll|what're whatre|what's whats|what've whatve|when's whens|where'd whered|where's wheres|where've whereve
who'd whod|who'd've whod've who'dve|who'll wholl|who's whos|who've whove|why'll whyll|why're whyre|why's whys
won't wont|would've wouldve|wouldn't wouldnt|wouldn't've wouldnt've wouldn'tve|y'all yall|y'all'll yall'll y'allll
y'all'd've yall'd've y'alld've y'all'dve|you'd youd|you'd've youd've you'dve|you'll youll|you're youre|you've youve
""".strip().splitlines()
    for target, *spellings in [entry.split() for entry in line.split("|")]
    for spelling in spellings
}


def tidied(answer: str) -> str:
    """Line breaks and tabs as spaces, no space at the ends: what the official code does before anything else.

    It says nothing of what is not ASCII: there, what looks alike is alike.
    """
    return folded(answer).replace("\n", " ").replace("\t", " ").strip()


def normalised(answer: str) -> str:
    """The official processing of punctuation, number words, articles and contractions."""
    text = answer
    has_thousands = _DIGITS_AROUND_COMMA.search(answer) is not None
    for mark in _PUNCTUATION + foreign_punctuation(answer):
        at_word_edge = f"{mark} " in answer or f" {mark}" in answer
        text = text.replace(mark, "" if at_word_edge or has_thousands else " ")
    text = _PERIOD.sub("", text, count=_MOST_PERIODS)
    words = [_NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """Official VQA accuracy of one prediction: the mean, over leaving out each answer, of min(1, matches / 3).

    Normalisation applies only where the answers are not all the same, as in the official code. With a single answer
    there is nothing left when it is left out, and the official result is 0; a data set with one answer a question is
    scored as if ten people had given it (see vlmexp.evaluation.score).
    """
    prediction, given = tidied(prediction), [tidied(answer) for answer in answers]
    if len(set(given)) > 1:
        prediction, given = normalised(prediction), [normalised(answer) for answer in given]
    matches = given.count(prediction)
    scores = [min(1.0, (matches - (answer == prediction)) / 3) for answer in given]
    return sum(scores) / len(scores) if scores else 0.0
