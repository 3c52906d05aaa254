from __future__ import annotations

import pytest

from tests.conftest import example
from vlmexp.collator.lengths import fit
from vlmexp.errors import UserError
from vlmexp.evaluation.generate import generate_answers


def test_a_batch_answers_what_each_example_alone_would(make_collator, model, draw):
    """Prompts and images of different sizes, in an order of their own."""
    collator = make_collator()
    colors, sizes = ["red", "blue", "black"], [(64, 64), (96, 64), (64, 160)]
    items = [
        example("what is it? " * (1 + k % 4), "", draw(colors[k % 3], sizes[k % 3]), id=str(k)) for k in range(7)
    ] + [example("no image here", "", id="7")]
    fitted = fit(collator, items, 2048, "error", with_answer=False)

    def answers(batch_size: int, share_images: bool = False) -> list[str]:
        return generate_answers(
            model, collator, fitted, fitted.lengths, batch_size, max_new_tokens=8, share_images=share_images
        )

    alone = answers(1)
    assert answers(8) == alone
    assert answers(3) == alone
    assert answers(8, share_images=True) == alone
    assert answers(2, share_images=True) == alone
    assert len(set(alone)) > 1


def test_generation_options_reach_the_model(make_collator, model, draw):
    items = [example("describe the image", "", draw("red"))]

    def answer(max_new_tokens: int, **options) -> str:
        return generate_answers(model, make_collator(), items, [1], 1, max_new_tokens, options)[0]

    assert answer(8, min_new_tokens=8).startswith(answer(1, min_new_tokens=1))
    assert len(answer(8, min_new_tokens=8)) > len(answer(1, min_new_tokens=1))


def test_a_checkpoint_does_not_change_how_answers_are_decoded(make_collator, model, draw):
    items = [example("describe the image", "", draw("red"))]
    plain = generate_answers(model, make_collator(), items, [1], 1, 12)
    model.generation_config.update(repetition_penalty=50.0, no_repeat_ngram_size=1, do_sample=True)
    assert generate_answers(model, make_collator(), items, [1], 1, 12) == plain


def test_answers_do_not_depend_on_what_is_prepared_beforehand(make_collator, model, draw):
    items = [example(f"what is number {k}?", "", draw("red" if k % 2 else "blue"), id=str(k)) for k in range(9)]

    def answers(ahead: int, **options) -> list[str]:
        return generate_answers(model, make_collator(), items, [1] * 9, 2, 6, options, ahead=ahead)

    assert answers(0) == answers(2)
    assert answers(0, do_sample=True) == answers(2, do_sample=True)
    assert answers(0, do_sample=True) != answers(0)


def test_answers_come_with_their_batch_until_an_example_that_cannot_be_read(make_collator, model, draw, tmp_path):
    missing = tmp_path / "missing.png"
    items = [example("what?", "", draw("red"), id=str(k)) for k in range(3)]
    items.append(example("what?", "", missing, id="broken"))
    kept: dict[int, str] = {}
    model.train()
    with pytest.raises(UserError, match=r"row broken.*missing\.png"):
        generate_answers(model, make_collator(), items, [4, 3, 2, 1], 1, 4, on_batch=kept.update)
    assert list(kept) == [0, 1, 2]
    assert model.training


def test_only_what_is_not_skipped_is_asked(make_collator, model, draw):
    items = [example(f"what is number {k}?", "", draw("red"), id=str(k)) for k in range(5)]
    everything = generate_answers(model, make_collator(), items, [1] * 5, 2, 6)
    kept: dict[int, str] = {}
    some = generate_answers(model, make_collator(), items, [1] * 5, 2, 6, skip={0, 3}, on_batch=kept.update)
    assert some == ["", everything[1], everything[2], "", everything[4]]
    assert sorted(kept) == [1, 2, 4]
