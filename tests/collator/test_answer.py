"""An answer's tokens are those that the whole text would have, prompt and answer together."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.models.families import FAMILIES
from vlmexp.collator.answer import AnswerForm, answer_form
from vlmexp.collator.prompt import special_strings

TEXTS = ["USER: what color is it? ASSISTANT: red", "ASSISTANT: two squares", "red two squares"]


def trained(backend: Tokenizer, texts: list[str]) -> PreTrainedTokenizerFast:
    backend.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=80, show_progress=False))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def sentence_piece() -> PreTrainedTokenizerFast:
    """As Llama's: a text begins with a space, whether there is one or not."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace()
    return trained(backend, TEXTS)


def byte_level(texts: list[str] = TEXTS) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return trained(backend, texts)


@pytest.mark.parametrize("words", [sentence_piece(), byte_level()], ids=["sentence_piece", "byte_level"])
@pytest.mark.parametrize("answer", ["red", "two squares", "x"])
def test_prompt_and_answer_are_tokenized_as_one_text(words, answer):
    prompt = "USER: what color is it? ASSISTANT:"
    form = AnswerForm(anchor=" ASSISTANT:", glue=" ")
    whole = words(f"{prompt} {answer}")["input_ids"]
    assert words(prompt)["input_ids"] + form.token_ids(words, answer) == whole


def test_an_answer_that_would_melt_into_the_prompt_stands_alone():
    words = byte_level(["answer"])
    assert len(words("answer")["input_ids"]) == 1
    assert AnswerForm(anchor="ans").token_ids(words, "wer") == words("wer")["input_ids"]


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen2vl", AnswerForm("<|im_start|>assistant\n", "", "<|im_end|>")),
        ("llava15", AnswerForm(" ASSISTANT:", " ", None)),
        ("smolvlm", AnswerForm("<end_of_utterance>\nAssistant:", " ", "<end_of_utterance>")),
        ("gemma3", AnswerForm("<start_of_turn>model\n", "", "<end_of_turn>")),
        ("phi3vision", AnswerForm("<|assistant|>\n", "", "<|end|>")),
    ],
)
def test_the_form_is_read_off_the_template(family, expected):
    processor = FAMILIES[family]()[1]
    special = re.compile("|".join(map(re.escape, sorted(special_strings(processor), key=len, reverse=True))))
    assert answer_form(processor, special) == expected
