"""The tokens at which an answer ends, and that all ways to answer know them."""

from __future__ import annotations

import pytest

from tests.conftest import example
from vlmexp.collator.lengths import fit
from vlmexp.evaluation.generate import generate_answers
from vlmexp.evaluation.ranking import rank_answers
from vlmexp.models.ends import end_ids
from vlmexp.models.export import end_answers_with
from vlmexp.training.answers import AnswerScores

END_OF_TURN, END_OF_TEXT = 911, 909  # <|im_end|> and <|endoftext|> of the embedded model


@pytest.mark.parametrize(
    ("generation", "config", "expected"),
    [
        (None, None, [911]),
        (5, 7, [5, 911]),
        ([5, 911, 6], 7, [5, 6, 911]),
        (None, 7, [7, 911]),
        ([], [7, 8], [7, 8, 911]),
        (92542, None, [911]),  # no token of this model
    ],
)
def test_the_checkpoint_names_them_in_either_file(model, processor, generation, config, expected):
    model.generation_config.eos_token_id = generation
    model.config.eos_token_id, model.config.text_config.eos_token_id = config, None
    assert end_ids(model, processor.tokenizer, END_OF_TURN) == expected


def test_the_tokenizer_and_the_template_name_one_each(model, processor, monkeypatch):
    model.generation_config.eos_token_id = 5
    monkeypatch.setattr(type(processor.tokenizer), "eos_token_id", END_OF_TEXT, raising=False)
    assert end_ids(model, processor.tokenizer, END_OF_TURN) == [5, 909, 911]
    end_answers_with(model, processor.tokenizer, END_OF_TURN)
    assert model.generation_config.eos_token_id == [5, 909, 911]


@pytest.fixture
def asked(draw):
    return [example("describe the image", "", draw("red"), id="0"), example("what is it?", "", draw("blue"), id="1")]


def test_an_answer_stops_before_any_end_whoever_makes_it(asked, make_collator, model):
    """An end that is no special token is no part of the answer, either."""
    collator, tokenizer = make_collator(), make_collator().processor.tokenizer
    fitted = fit(collator, asked, 2048, "error", with_answer=False)

    def answers(**options) -> list[str]:
        return generate_answers(model, collator, fitted, fitted.lengths, 2, 8, ahead=0, **options)

    model.generation_config.eos_token_id = END_OF_TURN
    whole = [tokenizer(text)["input_ids"] for text in answers()]
    end = whole[0][2]
    expected = [tokenizer.decode(ids[: ids.index(end)] if end in ids else ids).strip() for ids in whole]
    assert tokenizer.convert_ids_to_tokens(end) not in tokenizer.all_special_tokens
    assert len(tokenizer(expected[0])["input_ids"]) == whole[0].index(end)

    model.generation_config.eos_token_id = [END_OF_TURN, end]
    assert answers() == expected
    assert answers(share_images=True) == expected
    scores = AnswerScores(collator, fitted, [f"{__name__}.keep_prediction"], 2, 8, {}, True)
    SAID.clear()
    scores(model)
    assert SAID[-2:] == expected


SAID: list[str] = []


def keep_prediction(prediction: str, answers: list[str]) -> float:
    """A metric that remembers what it is to score."""
    SAID.append(prediction)
    return 0.0


@pytest.mark.parametrize("share_prompts", [True, False])
def test_a_candidate_may_end_in_any_of_them(asked, make_collator, model, share_prompts):
    def likelihood(ends: list[int]) -> float:
        model.generation_config.eos_token_id = ends
        ranked = rank_answers(model, make_collator(), asked[:1], [1], 2, [["", "red"]], share_prompts=share_prompts)
        return dict(ranked[0])[""]

    everything = list(range(model.config.text_config.vocab_size))
    assert likelihood(everything) == pytest.approx(0.0, abs=1e-5)  # whatever it says ends the answer
    assert likelihood([END_OF_TURN]) < likelihood([END_OF_TURN, END_OF_TEXT, 5]) < 0
