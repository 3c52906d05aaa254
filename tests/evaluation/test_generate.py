from __future__ import annotations

from pathlib import Path

from tests.conftest import example
from vlmexp.collator.lengths import fit
from vlmexp.evaluation.generate import by_image, by_length, generate_answers


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


def test_batches_keep_an_image_together():
    photos = [Path(name) for name in ("a", "b", "c")]
    asked = [example("?", "", photos[k % 3], id=str(k)) for k in range(7)] + [example("?", "", id="7")]
    assert by_image(asked, [10, 30, 20, 10, 30, 20, 10, 5], 4) == [[0, 3, 6], [1, 4, 2, 5], [7]]
    assert by_image(asked, [10] * 8, 2) == [[0, 3], [1, 4], [2, 5], [6, 7]]
    assert by_length([3, 9, 5], 2) == [[1, 2], [0]]
