from __future__ import annotations

import pytest

from tests.conftest import example
from vlmexp.collator.answer_lengths import answer_lengths
from vlmexp.evaluation.limits import limit_of

TAKES = "the longest accepted answer of test and train takes {} tokens"


@pytest.mark.parametrize(
    ("lengths", "tokens", "longest"),
    [
        ([2, 3], 16, "3"),  # at least so many
        ([2, 9], 17, "9"),
        ([31] * 5, 39, "31"),
        ([2, 100], 125, "100"),
        ([5] * 9 + [800], 1000, "800"),
        ([5] * 300 + [900], 1024, "900"),  # a few long ones do not ask for more
        ([1500] * 300, 1875, "1,500"),
        ([], 16, "0"),
    ],
)
def test_the_limit_is_the_longest_answer_and_some_room(lengths, tokens, longest):
    limit = limit_of(lengths, ["test", "train"])
    assert (limit.tokens, limit.source, limit.note) == (tokens, TAKES.format(longest), None)
    assert limit.tokens >= max(lengths, default=0)


def test_a_few_very_long_answers_are_named_instead():
    limit = limit_of([5] * 300 + [2000], ["test", "train"])
    assert limit.tokens == 1024
    assert limit.note == (
        "Answers are generated up to 1,024 tokens, and 1 of 301 accepted ones are longer, up to 2,000: "
        "evaluation.max_new_tokens=2000 waits for them (and as long where no end comes)."
    )
    assert limit_of([1200] * 397 + [5000] * 3, ["train"]).tokens == 1500
    assert limit_of([3000] * 50 + [4000], ["train"]).tokens == 5000  # more than one in a hundred: no outlier


def test_answers_are_counted_in_the_model_s_tokens_with_their_end(make_collator, processor):
    collator = make_collator()
    rows = [example("?", ["red", "a red circle", "red"]), example("?", "yes"), example("?", [])]
    ids = processor.tokenizer("a red circle", add_special_tokens=False)["input_ids"]
    assert len(ids) == 3
    assert answer_lengths(collator, rows).tolist() == [4, 2, 0]
