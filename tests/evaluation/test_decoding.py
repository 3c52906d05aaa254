from __future__ import annotations

import pytest

from vlmexp.errors import UserError
from vlmexp.evaluation.decoding import check_generation, decoding

MISTAKES = [
    ({"temperature": 0.7}, r"generation\.temperature=0\.7: this changes nothing without .*\.do_sample=true: add that"),
    ({"top_k": 5, "top_p": 0.5}, r"without evaluation\.generation\.do_sample=true"),
    ({"temperature": 0}, "without evaluation.generation answers are greedy. Leave it out"),
    ({"temperature": 0.0, "do_sample": True}, "answers are greedy. Leave it out, and do_sample with it"),
    ({"temperature": -1.0, "do_sample": True}, "strictly positive float"),
    ({"length_penalty": 0.5}, r"without evaluation\.generation\.num_beams=4"),
    ({"early_stopping": True}, r"without evaluation\.generation\.num_beams=4"),
    ({"do_sample": "yes"}, r"generation\.do_sample='yes' must be true or false"),
    ({"num_beams": 2.5}, r"generation\.num_beams=2\.5 must be a whole number"),
    ({"repetition_penalty": 0}, "has to be a strictly positive float, but is 0.0"),
    ({"min_new_tokens": 40}, "min_new_tokens=40 is more than the 16 tokens that an answer may have"),
    ({"stop_strings": 5}, "not iterable"),
    ({"bad_words_ids": [[10**7]]}, "vocabulary size"),
    ({"suppress_tokens": "red"}, r"suppress_tokens=red: "),
    ({"cache_implementation": "none"}, "Invalid `cache_implementation`"),
    ({"prompt_lookup_num_tokens": 3}, "only supported for batch_size = 1"),
    ({"use_mtp": True}, "num_mtp_layers"),
]
FINE = [
    {}, {"do_sample": True, "temperature": 2}, {"num_beams": 4}, {"num_beams": 2, "early_stopping": "never"},
    {"repetition_penalty": 2}, {"stop_strings": ["red"]}, {"min_new_tokens": 16}, {"bad_words_ids": [[3]]},
    {"do_sample": None}, {"use_cache": False}, {"watermarking_config": {"bias": 2.0}},
]  # fmt: skip


@pytest.mark.parametrize(("options", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_options_that_cannot_be_are_refused_without_a_model(options, message, processor):
    with pytest.raises(UserError, match=message) as caught:
        check_generation(options, processor.tokenizer, 32, 16)
    assert str(caught.value).count("\n") == 0
    assert not str(caught.value).endswith("..")


def test_options_that_can_be_are_taken(processor):
    for options in FINE:
        check_generation(options, processor.tokenizer, 32, 16)


def test_a_whole_number_stands_for_a_float():
    config = decoding({"do_sample": True, "temperature": 2, "top_k": 5}, 8, pad_id=0, end_ids={3, 2})
    assert (type(config.temperature), config.temperature, config.top_k) == (float, 2.0, 5)
    assert (config.eos_token_id, config.pad_token_id, config.max_new_tokens) == ([2, 3], 0, 8)
