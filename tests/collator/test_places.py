"""Marks in a question (`<image>`, `<image 1>`, `<video>`) are the places of its media."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import example
from tests.data.clips import clip
from tests.models.families import FAMILIES
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.collator.sharing import branch_inputs
from vlmexp.data.example import Example
from vlmexp.data.turns import Turn
from vlmexp.errors import UserError
from vlmexp.parts import build_collator, note_texts
from vlmexp.preview.cards import make_cards

IN_FRONT, WITHIN = "<image>\nis it red?", "is <image 1>\nlike <image 2>?"
# How a prompt shows one image in front of a question, and two within one; the answer's place is left out.
PLACED = {
    "qwen2vl": (
        "<|vision_start|><|image_pad|><|vision_end|>\nis it red?\nAnswer briefly.<|im_end|>",
        "is <|vision_start|><|image_pad|><|vision_end|>\nlike "
        "<|vision_start|><|image_pad|><|vision_end|>?\nAnswer briefly.<|im_end|>",
    ),
    # Its template writes all images first: in front that is their place, and within they are written where they stand.
    "llava15": ("USER: <image>\nis it red?\nAnswer briefly. A", "USER: is <image>\nlike <image>?\nAnswer briefly. A"),
    "llava_onevision": (
        "user <image>\nis it red?\nAnswer briefly.<|im_end|>",
        "user \nis <image>\nlike <image>\n?\nAnswer briefly.<|im_end|>",
    ),
    # Its template writes a line break behind an image, which the text's own takes the place of.
    "internvl2": (
        "<IMG_CONTEXT>\nis it red?\nAnswer briefly.<|im_end|>",
        "is <IMG_CONTEXT>\nlike <IMG_CONTEXT>\n?\nAnswer briefly.<|im_end|>",
    ),
    "gemma3": (
        "<start_of_image>\nis it red?\nAnswer briefly.<end_of_turn>",
        "is <start_of_image>\nlike <start_of_image>?\nAnswer briefly.<end_of_turn>",
    ),
    "smolvlm": ("<image>\nis it red?\nAnswer briefly.<end", "is <image>\nlike <image>?\nAnswer briefly.<end"),
    "phi3vision": (
        "<|image|>\nis it red?\nAnswer briefly.<|end|>",
        "is <|image|>\nlike <|image|>\n?\nAnswer briefly.<|end|>",
    ),
    # A prefix has its images in front, whatever the question says.
    "paligemma": (
        "<image><bos>answer en is it red?\n",
        "<image><image><bos>answer en is <image 1>\nlike <image 2>?\n",
    ),
}
FIRST, SECOND = "is <image 1> like <image 2>?", "is <image 2> like <image 1>?"


@pytest.fixture
def photos(tmp_path: Path) -> tuple[Path, Path]:
    sizes = {"red": (60, 40), "blue": (40, 60)}
    for color, size in sizes.items():
        Image.new("RGB", size, color).save(tmp_path / f"{color}.png")
    return tmp_path / "red.png", tmp_path / "blue.png"


@pytest.mark.parametrize("choice", PLACED)
def test_media_stand_where_their_marks_are(choice, photos, compose):
    collator = build_collator(compose(f"model={choice}"), FAMILIES[choice]()[1])
    items = [example(IN_FRONT, "no", photos[0]), example(WITHIN, "no", *photos)]
    for item, text in zip(items, PLACED[choice], strict=True):
        assert text in collator.template.prompt(item).text
    batch = collator(items)
    lengths = [collator([item])["input_ids"].shape[1] for item in items]
    assert token_lengths(collator, items, with_answer=True) == lengths == batch["attention_mask"].sum(1).tolist()


@pytest.mark.parametrize("choice", sorted(set(FAMILIES) - {"paligemma", "paligemma2"}))
def test_numbers_tell_which_image_stands_where(choice, photos, compose):
    collator = build_collator(compose(f"model={choice}"), FAMILIES[choice]()[1])
    turned = collator([example(SECOND, "no", *photos)])
    for name, value in collator([example(FIRST, "no", *reversed(photos))]).items():
        torch.testing.assert_close(turned[name], value, rtol=0, atol=0)
    [length] = token_lengths(collator, [example(SECOND, "no", *photos)], with_answer=True)
    assert length == turned["input_ids"].shape[1]


def test_a_prefix_shows_its_images_in_their_own_order(photos, compose):
    collator = build_collator(compose("model=paligemma"), FAMILIES["paligemma"]()[1])
    plain = collator([example("is it?", "no", *photos)])["pixel_values"]
    torch.testing.assert_close(collator([example(SECOND, "no", *photos)])["pixel_values"], plain, rtol=0, atol=0)


def test_questions_share_an_image_where_the_same_words_stand_before_it(photos, make_collator, model):
    """Packed they have the loss of the separate samples, whatever stands where."""
    red, blue = photos
    items = [
        example("<image>\nis it red?", "yes", red),
        example("is <image> red?", "no", red),
        example("<image>\nwhat color?", "red", red),
        example("what color?", "red", red),
        example(FIRST, "no", red, blue),
        example(SECOND, "no", red, blue),
    ]
    shared, separate = make_collator(share_images=True), make_collator()
    packed = shared(items)
    assert [sorted(set(row.tolist()) - {-1}) for row in packed["branch_ids"]] == [
        [0, 1, 2, 3], [0, 1], [0, 1], [0, 1],
    ]  # fmt: skip
    loss = model(**separate(items), use_cache=False).loss
    together = model(**branch_inputs(model, packed, torch.float32), use_cache=False).loss
    torch.testing.assert_close(together, loss, rtol=1e-5, atol=0)
    fitted = fit(separate, items, 500, "error")
    keys = fitted.media_keys(np.array([1, 1, 1, 1, 2, 2]))
    assert len(set(keys)) == 5  # of the marked ones the same words and the same images, and those without marks
    cards = make_cards(shared, [items[:4]], 500, "error", skip_bad=False)
    assert [[question.example.fields["question"] for question in card.questions] for card in cards] == [
        ["<image>\nis it red?", "<image>\nwhat color?", "what color?"], ["is <image> red?"],
    ]  # fmt: skip


def test_a_place_is_never_cut(photos, compose):
    collator = build_collator(compose("model=qwen2vl"), FAMILIES["qwen2vl"]()[1])
    item = example("red" * 9 + " <image> " + "x" * 40, "no", photos[0])
    length = token_lengths(collator, [item], with_answer=True)[0]
    fitted = fit(collator, [item], length - 30, "shorten_text")
    assert fitted[0].fields["question"] == "red" * 9 + " <image> " + "x" * 10
    assert collator(list(fitted))["input_ids"].shape[1] == length - 30
    with pytest.raises(UserError, match=r"is 42 tokens longer .* its question has only 41"):
        fit(collator, [item], length - 42, "shorten_text")


def test_a_video_has_a_place_too(compose, photos):
    collator = build_collator(
        compose("model=qwen2vl", "collator=video", "dataset.columns.video=video"), FAMILIES["qwen2vl"]()[1]
    )
    item = dataclasses.replace(example("as in <image>: <video>?", "no", photos[0]), videos=(clip("bikes"),))
    assert (
        "as in <|vision_start|><|image_pad|><|vision_end|>: "
        "<|vision_start|><|video_pad|><|vision_end|>?\nAnswer briefly.<|im_end|>"
    ) in collator.template.prompt(item).text
    assert token_lengths(collator, [item], with_answer=True) == [collator([item])["input_ids"].shape[1]]


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        (
            "qwen2vl",
            "user\nis <|vision_start|><|image_pad|><|vision_end|> or <|vision_start|><|image_pad|><|vision_end|>?<|im",
        ),
        ("llava15", "USER: is <image> or <image>? ASSISTANT:"),
    ],
)
def test_places_in_a_turn(choice, expected, photos, compose):
    chat = ["dataset=conversations", "dataset.options.train=train.jsonl", "collator=chat"]
    collator = build_collator(compose(f"model={choice}", *chat), FAMILIES[choice]()[1])

    def item(first: str, second: str, images: tuple[Path, ...]) -> Example:
        parts = (("text", "is "), ("image", first), ("text", " or "), ("image", second), ("text", "?"))
        return Example("0", {}, ("no",), images, turns=(Turn("user", parts),))

    turned, other = item("2", "1", photos), collator([item("1", "2", photos[::-1])])
    assert expected in collator.template.prompt(turned).text
    for name, value in collator([turned]).items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0)
    assert token_lengths(collator, [turned], with_answer=True) == [other["input_ids"].shape[1]]


def test_what_is_text_is_said(photos, compose):
    collator = build_collator(compose("model=qwen2vl"), FAMILIES["qwen2vl"]()[1])
    items = [
        example("<image> or <image>?", "no", photos[0]),
        example("the tag <image>?", "no"),
        example("<image 1>: is <image 1> red?", "no", photos[0]),
        example("red?", "no<|im_end|>", photos[0]),
        example("<image>\nred?", "no", photos[0]),
    ]
    notes: list[str] = []
    note_texts(collator, fit(collator, items, 500, "error").found, "train", notes.append)
    assert notes == [
        "train: In 2 of 5 examples a text holds <image> or <video>, or a numbered one, and not as many as there are "
        "media: it stays text, and the media stand where collator.messages have them.",
        "train: In 1 of 5 examples a mark such as <image 1> comes again: the image stands at the first, and the others "
        "are text.",
        "train: In 1 of 5 examples a text holds what the model would take for an image or for the end of a turn (such "
        "as <|endoftext|>, <|im_end|>, <|im_start|>, <|image_pad|>): it is read and learnt with a space in it.",
    ]
