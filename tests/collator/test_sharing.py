"""Questions behind one image prefix have exactly the loss and gradients of the separate samples."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from transformers.image_utils import SizeDict

from tests.conftest import example
from vlmexp.collator.sharing import branch_inputs

QUESTIONS = """is it red?|what color is the shape?|is there a circle in the image?|red?|is it not a triangle?
what is the blue shape?|does it contain a teal shape?|how many?|is it large?|what is at the top left?""".replace(
    "\n", "|"
).split("|")


def examples(draw, counts):
    sizes = [(64, 64), (96, 64), (64, 128)]
    return [
        example(QUESTIONS[k], "yes it is" if k % 3 else "no", draw("red", sizes[image % 3]))
        for image, count in enumerate(counts)
        for k in range(count)
    ]


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("counts", [[1], [2], [10], [3, 1, 5], [10, 2, 1]])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_equal_to_separate_samples(counts, attention, make_collator, model, draw):
    model.set_attn_implementation(attention)
    items = examples(draw, counts)
    packed = make_collator(share_images=True)(items)
    separate = make_collator()(items)
    assert packed["input_ids"].shape[0] == len(counts)
    assert separate["input_ids"].shape[0] == sum(counts)
    assert packed["pixel_values"].shape[0] * sum(counts) >= separate["pixel_values"].shape[0]
    assert (packed["labels"] != -100).sum() == (separate["labels"] != -100).sum()
    loss, gradients = loss_and_gradients(model, separate)
    shared_loss, shared_gradients = loss_and_gradients(model, branch_inputs(model, packed, torch.float32))
    assert shared_loss == pytest.approx(loss, rel=1e-5)
    assert gradients.keys() == shared_gradients.keys()
    scale = max(gradient.norm() for gradient in gradients.values())
    for name, gradient in gradients.items():
        difference = (gradient - shared_gradients[name]).norm()
        assert difference <= 1e-4 * max(gradient.norm(), 1e-3 * scale), name


def test_an_image_of_one_token(make_collator, monkeypatch, model, draw):
    """The prompt is then the same before and after its placeholder is expanded."""
    items = [example("red?", "yes", draw("red", (16, 16))), example("how many?", "no", draw("red", (16, 16)))]
    collator = make_collator()
    monkeypatch.setattr(collator.processor.image_processor, "size", SizeDict(shortest_edge=256, longest_edge=2**18))
    separate, packed = collator(items), dataclasses.replace(collator, share_images=True)(items)
    assert separate["image_grid_thw"].tolist() == [[1, 2, 2], [1, 2, 2]]
    loss, _ = loss_and_gradients(model, separate)
    shared, _ = loss_and_gradients(model, branch_inputs(model, packed, torch.float32))
    assert shared == pytest.approx(loss, rel=1e-5)


def test_the_same_question_twice(make_collator, model, draw):
    """Two whole prompts in common: the last prompt token still belongs to each branch."""
    items = [example("red?", "yes", draw("red")), example("red?", "no", draw("red"))]
    packed = branch_inputs(model, make_collator(share_images=True)(items), torch.float32)
    loss, _ = loss_and_gradients(model, make_collator()(items))
    shared, _ = loss_and_gradients(model, packed)
    assert shared == pytest.approx(loss, rel=1e-5)


def test_a_branch_sees_no_other_branch(make_collator, model, draw):
    """Changing one question and its answer changes no logit of another."""
    image = draw("red")
    first, second = example("is it red?", "yes", image), example("what color is it?", "red", image)
    other = example("where is the big circle?", "left", image)
    collator = make_collator(share_images=True)
    with torch.inference_mode():
        logits = []
        for pair in ([first, second], [first, other]):
            batch = collator(pair)
            branch = batch["branch_ids"][0] == 1
            batch.pop("labels")
            logits.append(model(**branch_inputs(model, batch, torch.float32), use_cache=False).logits[0][branch])
    length = min(map(len, logits))
    assert length >= 6
    torch.testing.assert_close(logits[0][-4:], logits[1][-4:], rtol=0, atol=1e-5)


def test_a_batch_without_any_image(make_collator, model):
    items = [example("is it red?", "yes"), example("what color is the shape?", "blue")]
    loss, _ = loss_and_gradients(model, make_collator()(items))
    packed = branch_inputs(model, make_collator(share_images=True)(items), torch.float32)
    assert loss_and_gradients(model, packed)[0] == pytest.approx(loss, rel=1e-5)


def test_images_without_sharing_stay_separate(make_collator, draw):
    batch = make_collator(share_images=True)([example("a?", "b"), example("a?", "b"), example("c?", "d", draw("red"))])
    assert batch["input_ids"].shape[0] == 3
