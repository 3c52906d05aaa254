from __future__ import annotations

import pytest

from vlmexp.evaluation.caption_words import caption_words

CURLY = "\N{RIGHT SINGLE QUOTATION MARK}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A man's hat.", "a man 's hat"),
        ("the boss's dog, the kids' bikes", "the boss 's dog the kids bikes"),
        ("don't can't won't ain't isn't", "do n't ca n't wo n't ai n't is n't"),
        (f"don{CURLY}t, people{CURLY}s", "do n't people 's"),
        ("they're I've we'll she'd I'm", "they 're i 've we 'll she 'd i 'm"),
        ("mustn't've", "must n't 've"),
        ("cannot. gonna wanna gotta", "can not gon na wan na got ta"),
        ("5 o'clock, o'neil's l'eau, ma'am, y'all", "5 o'clock o'neil 's l'eau ma'am y' all"),
        ("rock 'n' roll of the '80s and 1980's", "rock 'n' roll of the '80s and 1980 's"),
        ("a 'stop' sign, 'hello'", "a stop sign hello"),
        ('he said "hi"', "he said hi"),
        ("it's 10:30, 3:00pm, 4 p.m.", "it 's 10:30 3:00 pm 4 p.m."),
        ("3,000 and 3.5 and 1/2 and 5-10, 2nd", "3,000 and 3.5 and 1/2 and 5-10 2nd"),
        ("50% off $5.99", "50 % off $ 5.99"),
        ("a U.S. flag, e.g. this", "a u.s. flag e.g. this"),
        ("Mr. Smith of main st. at no. 5", "mr. smith of main st. at no. 5"),
        ("It says no.", "it says no"),
        ("a well-known two-year-old's T-shirt.", "a well-known two-year-old 's t-shirt"),
        ("a cat/dog", "a cat/dog"),
        ("A & B, dogs&cats, a+b", "a & b dogs & cats a + b"),
        ("(big) [x] {y}", "-lrb- big -rrb- -lsb- x -rsb- -lcb- y -rcb-"),
        ("a -- b - c: d; end...", "a b c d end"),
        ("wow!!! what?! yes! no?", "wow !!! what ?! yes no"),
        ("naïve café 🐱", "naïve café"),
        ("", ""),
    ],
)
def test_words_are_those_of_coco_caption(text, words):
    """What pycocoevalcap 1.2 makes of these texts."""
    assert caption_words(text) == words.split()
