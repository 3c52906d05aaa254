"""Tokens are counted without being made: as many as the tokenizer makes of each whole text."""

from __future__ import annotations

import pytest

from tests.models import families
from vlmexp.collator import text_lengths
from vlmexp.collator.encode import tokenize
from vlmexp.collator.text_lengths import TextLengths

QUESTIONS = ("red?", " is it", "", "a", "what colour is the circle", "  two  spaces ", "line\nbreak", "é? 你好", "red?")


def prompts(before: str, behind: str) -> list[str]:
    return [f"{before}{question}{behind}" for question in QUESTIONS]


@pytest.mark.parametrize("family", sorted(families.FAMILIES))
def test_as_many_as_there_are(family, monkeypatch):
    _, processor = families.FAMILIES[family]()
    lengths, tokenizer = TextLengths(processor), processor.tokenizer
    bos, marks = tokenizer.bos_token or "", [t for t in tokenizer.all_special_tokens if t != tokenizer.bos_token]
    first, last = marks[0], marks[-1]
    surroundings = [("", ""), (bos, ""), (f"{bos}user {first}\n", f" \n{last}assistant "), (f"{first}", f"{first}")]
    for texts in (prompts(*each) for each in surroundings):
        assert lengths(texts) == [len(ids) for ids in tokenize(processor, texts)]
        assert lengths(texts[:2]) == [len(ids) for ids in tokenize(processor, texts[:2])]
    monkeypatch.setattr(text_lengths, "_KNOWN", 0)  # nothing is remembered
    assert lengths(texts) == [len(ids) for ids in tokenize(processor, texts)]


def test_of_a_text_that_is_long_outside_only_the_middle_is_read(processor, monkeypatch):
    lengths, read = TextLengths(processor), []
    whole = lengths._lengths
    monkeypatch.setattr(lengths, "_lengths", lambda texts, options: read.append(texts) or whole(texts, options))
    texts = [f"<|im_start|>user\nlook at it<|vision_end|>{n} red?<|im_end|><|im_start|>assistant\n" for n in range(40)]
    assert lengths(texts) == [len(ids) for ids in tokenize(processor, texts)]
    assert read[0][7] == "<|vision_end|>7 red?<|im_end|>"
    assert read[1] == texts[::10]


def test_a_tokenizer_that_reads_a_beginning_otherwise_gets_whole_texts(processor, monkeypatch):
    lengths = TextLengths(processor)
    monkeypatch.setattr(
        lengths, "_lengths", lambda texts, options: [len(text) ** (1 + text.startswith("<|im_")) for text in texts]
    )
    texts = [f"<|im_start|>user\n<|vision_end|>{n} red?<|im_end|>" for n in range(8, 14)]
    assert lengths(texts) == [len(text) ** 2 for text in texts]
