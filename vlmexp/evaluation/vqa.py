"""VQA accuracy, as it is computed today and as the official code of 2015 does, and the normalisation of answers.

Source: Antol et al. (https://arxiv.org/abs/1505.00468) and the official code, GT-Vision-Lab/VQA, vqaEval.py.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vlmexp.evaluation.words import folded, foreign_punctuation

ANNOTATORS = 10  # of a question of VQA v2, for which its accuracy is defined

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


def evalai_processed(answer: str) -> str:
    """What the EvalAI processing makes of an answer, with which papers of the last years score.

    It writes small letters, deletes commas and question marks and parts "'s" from its word before the official
    processing; lmms-eval, VLMEvalKit and InternVL all use it.
    """
    text = folded(answer).lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return normalised(tidied(text))


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy with both sides normalised: the mean, over leaving out each answer, of min(1, matches / 3).

    Source: the EvalAI evaluation of VQA v2, TextVQA, OK-VQA and VizWiz, as lmms-eval computes it. A single answer
    counts as if all ten annotators had given it; there, that evaluation leaves nothing to match and gives 0.
    """
    given = [evalai_processed(answer) for answer in answers]
    return _mean_of_the_others(evalai_processed(prediction), given * ANNOTATORS if len(given) == 1 else given)


def vqa_accuracy_2015(prediction: str, answers: Sequence[str]) -> float:
    """VQA accuracy of the official code of 2015, which normalises only where the answers are not all the same.

    So `Yes` gets 0 where all ten said `yes`, and a single answer, of which nothing is left when it is left out, always.
    """
    prediction, given = tidied(prediction), [tidied(answer) for answer in answers]
    if len(set(given)) > 1:
        prediction, given = normalised(prediction), [normalised(answer) for answer in given]
    return _mean_of_the_others(prediction, given)


def _mean_of_the_others(prediction: str, answers: Sequence[str]) -> float:
    matches = answers.count(prediction)
    scores = [min(1.0, (matches - (answer == prediction)) / 3) for answer in answers]
    return sum(scores) / len(scores) if scores else 0.0
