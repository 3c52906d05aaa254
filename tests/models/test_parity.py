"""What the gate lets through, and what it does not."""

from __future__ import annotations

import math

import pytest
import torch

from tests.conftest import example
from vlmexp.models.parity import Answer, Parity, compare, greedy_answers, input_difference

REFERENCE = [Answer([2, 3], torch.tensor([[0.0, 0.0, 8.0, 0.0], [0.0, 0.0, 0.0, 8.0]]))]


def test_the_numbers_of_a_difference():
    other = [Answer([2, 3], torch.tensor([[0.0, 0.25, 8.0, 0.0], [0.0, 0.0, 0.0, 7.5]]))]
    found = compare(REFERENCE, other, relative_tolerance=0.125)
    assert (found.examples, found.positions, found.equal_answers) == (1, 2, 1)
    assert (found.max_abs_difference, found.scale, found.tolerance) == (0.5, 8.0, 1.0)
    assert found.accepted
    assert not compare(REFERENCE, other, relative_tolerance=0.05).accepted


def test_logits_behind_the_first_other_token_are_not_compared():
    """They continue different texts; the ones that chose the other token count."""
    other = [Answer([1, 0], torch.tensor([[0.0, 9.0, 8.0, 0.0], [50.0, 0.0, 0.0, 0.0]]))]
    found = compare(REFERENCE, other, relative_tolerance=1e-3)
    assert (found.positions, found.max_abs_difference, found.equal_answers) == (1, 9.0, 0)


def test_infinite_logits_are_equal_and_nan_is_not_accepted():
    never = [Answer([1], torch.tensor([[-math.inf, 4.0, 0.0]]))]
    assert compare(never, never, relative_tolerance=1e-3).max_abs_difference == 0
    broken = [Answer([1], torch.tensor([[0.0, math.nan, 0.0]]))]
    for pair in ((never, broken), (broken, never), (broken, broken)):
        assert not compare(*pair, relative_tolerance=1e-3).accepted


def test_another_vocabulary_is_no_other_form_of_the_model():
    with pytest.raises(ValueError, match="4 and 3 logits"):
        compare(REFERENCE, [Answer([1], torch.zeros(1, 3))], relative_tolerance=1.0)


def test_one_wrong_weight_is_found_with_its_numbers(model, make_collator, draw):
    examples = [
        example("what color is it?", "red", draw("red")),
        example("is there a circle in this image?", "no", draw("blue", (96, 64))),
        example("what?", "teal", draw("teal")),
    ]
    collator = make_collator()
    batches = [collator.prompts(examples[:2]), collator.prompts(examples[2:])]

    def answers():
        return greedy_answers(model, batches, max_new_tokens=4, pad_id=collator.pad_id, end_id=collator.end_id)

    parity = Parity(answers())
    assert [answer.logits.shape[1] for answer in parity.answers["trained"]] == [1024] * 3
    assert all(1 <= len(answer.tokens) == len(answer.logits) <= 4 for answer in parity.answers["trained"])
    parity.add("again", answers(), relative_tolerance=1e-3)
    assert parity.problem() is None
    assert parity.differences["again against trained"].max_abs_difference == 0

    with torch.no_grad():
        model.model.visual.merger.mlp[0].weight[0] *= 3
    parity.add("one row changed", answers(), relative_tolerance=1e-3, reference="again")
    difference = parity.differences["one row changed against again"]
    assert difference.max_abs_difference > 3 * difference.tolerance
    said = parity.problem()
    assert said.startswith(f"one row changed against again: logits differ by up to {difference.max_abs_difference:.3g}")
    assert "of 3 greedy answers" in said
    assert parity.record()["differences"]["again against trained"]["accepted"] is True
    assert parity.record()["differences"]["one row changed against again"]["accepted"] is False


def test_an_answer_ends_with_its_end(model, make_collator, draw):
    collator = make_collator()
    batches = [collator.prompts([example("is it red?", "yes", draw("red"))])]
    (free,) = greedy_answers(model, batches, max_new_tokens=3, pad_id=collator.pad_id, end_id=None)
    assert len(free.tokens) == 3
    (ended,) = greedy_answers(model, batches, max_new_tokens=3, pad_id=collator.pad_id, end_id=free.tokens[0])
    assert ended.tokens == free.tokens[:1]


def test_the_inputs_of_two_processors():
    batch = {"input_ids": torch.tensor([[1, 2]]), "pixel_values": torch.tensor([0.5])}
    assert input_difference([batch], [batch]) == 0
    assert input_difference([batch], [batch | {"pixel_values": torch.tensor([0.75])}]) == 0.25
    for other in ({"input_ids": torch.tensor([[1, 3]])}, {"input_ids": torch.tensor([[1]])}, {"extra": batch}):
        assert input_difference([batch], [batch | other]) == math.inf
    parity = Parity([])
    parity.add_inputs([batch], [batch | {"input_ids": torch.tensor([[1, 3]])}])
    assert "other tokens" in parity.problem()
