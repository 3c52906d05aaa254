"""Which tokens carry a loss, literally."""

from __future__ import annotations

import dataclasses

import pytest

from tests.conftest import example
from vlmexp.errors import UserError
from vlmexp.parts import shares_images


def tokens_and_labels(processor, collator, item):
    batch = collator([item])
    ids, labels = batch["input_ids"][0], batch["labels"][0]
    tokens = processor.tokenizer.convert_ids_to_tokens(ids.tolist())
    return [
        (t.replace("Ġ", " "), None if label == -100 else t.replace("Ġ", " "))
        for t, label in zip(tokens, labels, strict=True)
    ]


HEAD = ["<|im_start|>", "user", "Ċ", "<|vision_start|>"]
TAIL = [
    "<|vision_end|>", "is", " it", " red", "?", "Ċ", "Answer", " briefly", ".", "<|im_end|>",
    "<|im_start|>", "assistant", "Ċ",
]  # fmt: skip


def test_the_loss_is_on_the_answer_and_its_end(processor, make_collator, draw):
    found = tokens_and_labels(processor, make_collator(), example("is it red?", "yes", draw("red")))
    tokens = [*HEAD, *["<|image_pad|>"] * 16, *TAIL, "yes", "<|im_end|>"]
    assert [token for token, _ in found] == tokens
    assert [label for _, label in found] == [None] * (len(tokens) - 2) + ["yes", "<|im_end|>"]


def test_the_loss_is_on_everything_but_media(processor, make_collator, draw):
    found = tokens_and_labels(processor, make_collator("collator=vqa_full"), example("is it red?", "no", draw("red")))
    assert [label for _, label in found] == [*HEAD, *[None] * 16, *TAIL, "no", "<|im_end|>"]


def test_media_tokens_can_be_kept(processor, make_collator, draw):
    collator = make_collator("collator=vqa_full", "collator.label_masking.mask_image_token=false")
    found = tokens_and_labels(processor, collator, example("is it red?", "no", draw("red")))
    assert all(label == token for token, label in found)


@pytest.mark.parametrize(("masked", "expected"), [(True, -100), (False, None)])
def test_padding_is_on_the_right_and_masked_if_asked(processor, make_collator, draw, masked, expected):
    collator = make_collator(f"collator.label_masking.mask_pad_token={masked}")
    image = draw("red")
    batch = collator([example("red?", "yes", image), example("is there a red circle in the image?", "no", image)])
    length = int(batch["attention_mask"][0].sum())
    assert length < batch["input_ids"].shape[1]
    assert (batch["input_ids"][0, length:] == processor.tokenizer.pad_token_id).all()
    assert (batch["attention_mask"][0, length:] == 0).all()
    wanted = processor.tokenizer.pad_token_id if expected is None else expected
    assert (batch["labels"][0, length:] == wanted).all()


def test_another_ignore_index_is_refused(make_collator):
    with pytest.raises(UserError, match="ignore_index=0 must be -100"):
        make_collator("collator.label_masking.ignore_index=0")


def test_generation_batches_are_padded_on_the_left(processor, make_collator, draw):
    image = draw("red")
    batch = make_collator().prompts([example("red?", "", image), example("is there a red circle in it?", "", image)])
    assert "labels" not in batch
    missing = int((batch["attention_mask"][0] == 0).sum())
    assert missing > 0
    assert (batch["attention_mask"][0, missing:] == 1).all()
    assert (batch["input_ids"][0, :missing] == processor.tokenizer.pad_token_id).all()
    ends = processor.tokenizer.convert_ids_to_tokens(batch["input_ids"][:, -3:].flatten().tolist())
    assert ends == ["<|im_start|>", "assistant", "Ċ"] * 2


def test_several_images_and_none(processor, make_collator, draw):
    collator = make_collator()
    batch = collator([example("which?", "a", draw("red"), draw("blue", (96, 64))), example("who?", "b")])
    pads = (batch["input_ids"] == processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")).sum(1)
    assert pads.tolist() == [16 + 24, 0]
    assert batch["image_grid_thw"].tolist() == [[1, 8, 8], [1, 8, 12]]
    assert batch["mm_token_type_ids"].sum(1).tolist() == [40, 0]


HOSTILE = [
    "{question}",
    "{",
    "}}",
    "{% if %}",
    "<|image_pad|>",
    "<|im_end|>",
    "<|vision_start|><|image_pad|>",
    "a\nb",
    "{0}",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_text_is_only_text(text, processor, make_collator, draw):
    """Nothing in a question or answer becomes a field, a template expression or a control token."""
    collator = make_collator()
    batch = collator([example(text, text, draw("red"))])
    plain = collator([example("word", "word", draw("red"))])
    tokenizer = processor.tokenizer
    special = set(tokenizer.all_special_ids)
    count = lambda ids: [token for token in ids[0].tolist() if token in special]  # noqa: E731
    assert count(batch["input_ids"]) == count(plain["input_ids"])
    said = tokenizer.decode([label for label in batch["labels"][0].tolist() if label != -100][:-1])
    assert said.replace(" ", "") == text.replace(" ", "")
    assert text.replace(" ", "") in tokenizer.decode(batch["input_ids"][0]).replace(" ", "")


def test_the_mission_spelling_of_a_field(make_collator, draw, processor):
    override = "collator.messages.0.content.1.text='Q: {question_column}'"
    batch = make_collator(override)([example("red?", "yes", draw("red"))])
    assert "Q: red?" in processor.tokenizer.decode(batch["input_ids"][0])


def test_every_answer_of_a_template_is_trained(processor, make_collator, draw, compose):
    """A template with an example of how to answer: its answers carry a loss as well, fields and all."""
    options = [
        "dataset.columns.hint=hint",
        "collator.messages=[{role: user, content: [{type: image}, {text: what color?}]},"
        "{role: assistant, content: [{text: 'it is {hint}'}]},"
        "{role: user, content: [{text: '{question}'}]}, {role: assistant, content: [{text: '{answer}'}]}]",
    ]
    collator = make_collator(*options)
    item = example("is it red?", "yes", draw("red"))
    item = dataclasses.replace(item, fields={**item.fields, "hint": "a red circle"})
    found = tokens_and_labels(processor, collator, item)
    trained = [label for _, label in found if label is not None]
    assert trained == ["it", " is", " a", " red", " circle", "<|im_end|>", "yes", "<|im_end|>"]
    text = "".join(token for token, _ in found if token != "<|image_pad|>")
    assert text == (
        "<|im_start|>userĊ<|vision_start|><|vision_end|>what color?<|im_end|><|im_start|>assistantĊit is a red circle"
        "<|im_end|><|im_start|>userĊis it red?<|im_end|><|im_start|>assistantĊyes<|im_end|>"
    )
    with pytest.raises(UserError, match="several turns of the assistant, each with a loss"):
        shares_images(compose(*options, "collator.share_images=always"), collator, ["a", "a"], with_loss=True)
    assert shares_images(compose(*options), collator, ["a", "a"], with_loss=False)
