from __future__ import annotations

import pytest

from tests.conftest import example
from vlmexp.evaluation import ranking
from vlmexp.evaluation.ranking import rank_answers

WORDS = ["red", "a blue circle", "no", "yes", "there is a green triangle at the top", ""]


@pytest.fixture
def asked(draw):
    sizes = [(64, 64), (96, 64), (64, 160)]
    items = [example("what is it? " * (1 + k % 4), "", draw("red", sizes[k % 3]), id=str(k)) for k in range(7)]
    return [*items, example("no image here", "", id="7")]


@pytest.fixture
def ranked(asked, make_collator, model):
    def rank(choices, **options):
        defaults = {"batch_size": 5, "lengths": [1] * len(asked)}
        return rank_answers(model, make_collator(), asked, choices=choices, **{**defaults, **options})

    return rank


def test_shared_prompts_rank_as_separate_ones_do(ranked, monkeypatch):
    """Every question has candidates of its own, in other numbers and lengths, and a pass holds only some of them."""
    choices = [WORDS[: 2 + k % 5] for k in range(8)]
    separate = ranked(choices, share_prompts=False)
    for tokens in (512, 6, 1):
        monkeypatch.setattr(ranking, "PASS_TOKENS", tokens)
        for mine, expected in zip(ranked(choices), separate, strict=True):
            assert [text for text, _ in mine] == [text for text, _ in expected]
            assert dict(mine) == pytest.approx(dict(expected), abs=1e-4)
    assert len({row[0][0] for row in separate}) > 1


def test_per_token_divides_by_the_tokens_with_the_end(ranked, make_collator, asked):
    plain, normalised = ranked([WORDS] * 8), ranked([WORDS] * 8, per_token=True)
    for before, after in zip(plain, normalised, strict=True):
        counts = {"red": 2, "": 1}
        for text, count in counts.items():
            assert dict(after)[text] == pytest.approx(dict(before)[text] / count)
    assert [row[0][0] for row in plain] != [row[0][0] for row in normalised]


def test_only_what_is_not_skipped_is_ranked(ranked):
    kept = {}
    some = ranked([WORDS] * 8, skip={0, 7}, on_batch=kept.update)
    assert (some[0], some[7]) == ([], [])
    assert sorted(kept) == [1, 2, 3, 4, 5, 6]
    assert kept[1] == some[1]
