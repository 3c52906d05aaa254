from __future__ import annotations

import pytest

from tests.conftest import example
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.errors import UserError


@pytest.fixture
def items(draw):
    return [
        example("red?", "yes", draw("red")),
        example("is there a rather large circle in the image?", "no", draw("red", (96, 64)), id="1"),
        example("who?", "nobody at all"),
        example("which of both?", "b", draw("red"), draw("blue", (128, 32)), id="3"),
        example("<|image_pad|>{x}\n", "<|im_end|>", draw("red"), id="4"),
    ]


@pytest.mark.parametrize("with_answer", [True, False])
def test_lengths_are_those_of_the_batch(items, make_collator, with_answer):
    collator = make_collator()
    for item, length in zip(items, token_lengths(collator, items, with_answer), strict=True):
        batch = collator([item]) if with_answer else collator.prompts([item])
        assert length == batch["input_ids"].shape[1]


def test_lengths_of_nothing(make_collator):
    assert token_lengths(make_collator(), [], True) == []


def test_too_long_is_an_error_that_names_the_example(items, make_collator):
    with pytest.raises(UserError, match=r"1 of 5 examples .* collator.max_length=52 .* 3, has 54"):
        fit(make_collator(), items, 52, "error")


def test_too_long_is_dropped(items, make_collator):
    fitted = fit(make_collator(), items, 52, "drop")
    assert fitted.dropped == ["3"]
    assert [item.id for item in fitted] == ["0", "1", "0", "4"]
    assert max(fitted.lengths) <= 52
    assert list(fitted.kept) == [0, 1, 2, 4]


def test_a_long_question_is_shortened_and_its_image_is_whole(make_collator, draw, processor):
    collator = make_collator()
    long = example("is there a circle " * 40, "yes", draw("red"), id="long")
    fitted = fit(collator, [long], 50, "shorten_text")
    assert fitted.shortened == ["long"]
    batch = collator([fitted[0]])
    assert batch["input_ids"].shape[1] == fitted.lengths[0] <= 50
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["input_ids"] == pad).sum() == 16
    assert fitted[0].fields["question"].startswith("is there a circle is there")
    assert (batch["labels"] != -100).sum() == 2


def test_an_image_that_alone_is_too_long(make_collator, draw):
    with pytest.raises(
        UserError,
        match=r"only 2: the rest of the prompt \(its media add 1023\) and an answer .* \(here 2\) are never cut",
    ):
        fit(make_collator(), [example("red?", "yes", draw("red", (512, 512)))], 50, "shorten_text")


def test_an_answer_that_alone_is_too_long(make_collator, draw):
    with pytest.raises(UserError, match=r"\(its media add 15\) and an answer to train on \(here 502\) are never cut"):
        fit(make_collator(), [example("red?", "yes " * 500, draw("red"))], 50, "shorten_text")


def test_where_every_example_counts_it_is_kept_as_it_is(items, make_collator, draw):
    large = example("red?", "yes", draw("red", (512, 512)), id="large")
    fitted = fit(make_collator(), [*items, large], 52, "keep")
    assert (fitted.shortened, fitted.too_long, fitted.dropped) == (["3"], ["large"], [])
    assert len(fitted) == len(items) + 1
    assert fitted[len(items)] is large
    assert max(fitted.lengths[:-1]) <= 52 < 1024 < fitted.lengths[-1] == fitted.media_lengths[-1] + 18
