"""Images made smaller where a row is too long: as little as possible, and no other row is touched."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.conftest import example
from tests.data.clips import clip
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.collator.media import media_key, media_shape
from vlmexp.collator.sharing import branch_inputs
from vlmexp.data.example import Example
from vlmexp.errors import UserError


def length_at(collator, item: Example, limit: int) -> int:
    return token_lengths(collator, [dataclasses.replace(item, media_limit=limit)], with_answer=True)[0]


def test_the_images_of_a_long_row_are_as_large_as_they_can_be(make_collator, draw):
    collator = make_collator()
    items = [
        example("red?", "yes", draw("red", (256, 128)), draw("blue", (64, 128)), id="long"),
        example("red?", "yes", draw("red"), id="short"),
    ]
    before = token_lengths(collator, items, with_answer=True)
    fitted = fit(collator, items, 90, "shrink_image")
    assert before[0] > 90
    assert (fitted.shrunk, fitted.shortened, fitted.dropped) == (["long"], [], [])
    long, short = fitted
    assert short is items[1]
    limit = long.media_limit
    assert media_shape(long, collator.media) == ((limit, limit // 2), (min(64, limit // 2), min(128, limit)))
    assert [collator([item])["input_ids"].shape[1] for item in fitted] == fitted.lengths.tolist()
    assert fitted.lengths[0] <= 90 < length_at(collator, long, limit + 1)
    assert (long.fields, long.answers) == (items[0].fields, items[0].answers)


def test_a_crop_stays_a_crop(make_collator, draw):
    item = example("red?", "yes", draw("red", (256, 64)), id="wide")
    crop = ["collator.image_processing.resize_mode=crop"]
    for overrides, square in (([*crop, "collator.image_processing.max_size=128"], True), (crop, False)):
        collator = make_collator(*overrides)
        shrunk = dataclasses.replace(item, media_limit=64)
        assert media_shape(shrunk, collator.media) == (((64, 64) if square else (64, 16)),)


def test_a_strip_that_the_processor_takes_at_some_sizes_only(make_collator, draw):
    """At most of them one pixel is left of its height, and more than 200 times that of its width."""
    item = example("red?", "yes", draw("red", (5000, 26)))
    (kept,) = fit(make_collator(), [item], 31, "shrink_image")
    assert kept.media_limit == 49
    with pytest.raises(UserError, match="takes no media of 250 x 1 pixels"):
        length_at(make_collator(), item, 250)


def test_a_row_that_no_small_image_helps(make_collator, draw):
    collator = make_collator()
    with pytest.raises(UserError, match=r"Example t is \d+ tokens longer .* has no image to shrink"):
        fit(collator, [example("is it red? " * 20, "no", id="t")], 60, "shrink_image")
    with pytest.raises(UserError, match=r"Example t is \d+ tokens .* with images of 32 pixels still \d+:"):
        fit(collator, [example("is it red? " * 20, "no", draw("red", (128, 128)), id="t")], 60, "shrink_image")
    with pytest.raises(UserError, match=r"Example t is \d+ tokens .* with images of 16 pixels still \d+:"):
        fit(collator, [example("is it red? " * 20, "no", draw("red", (16, 16)), id="t")], 60, "shrink_image")


def test_only_questions_on_an_image_of_one_size_share_it(make_collator, model, draw):
    """The long question's image is smaller, so it is packed alone, and the loss is that of the separate rows."""
    image = draw("red", (128, 128))
    long = "is there not a red circle in the image or is there " * 2
    items = [example("red?", "yes", image), example(long, "no", image, id="1"), example("what?", "red", image, id="2")]
    collator = make_collator()
    short = max(token_lengths(collator, [items[0], items[2]], with_answer=True))
    fitted = fit(collator, items, short, "shrink_image")
    assert fitted.shrunk == ["1"]
    limit = fitted[1].media_limit
    assert media_key(fitted[1]) == (str(image), f"at most {limit} pixels")
    first, shrunk, last = fitted.media_keys(np.array([7, 7, 7]))
    assert first == last == 7 != shrunk
    packed = make_collator(share_images=True)(list(fitted))
    assert packed["branch_ids"].amax(1).tolist() == [2, 1]
    with torch.inference_mode():
        separate = model(**collator(list(fitted))).loss
        shared = model(**branch_inputs(model, packed, torch.float32), use_cache=False).loss
    assert shared.item() == pytest.approx(separate.item(), rel=1e-5)


def test_the_frames_of_a_long_row_are_smaller(make_collator):
    collator = make_collator(
        "model.media=[image, video]", "dataset.columns.video=video", "collator=video",
        "collator.video_processing.frame_extraction.num_frames=2",
    )  # fmt: skip
    item = Example("clip", {"question": "what?"}, ("a bike",), videos=(clip("bikes"),))
    (length,) = token_lengths(collator, [item], with_answer=True)
    fitted = fit(collator, [item], length // 2, "shrink_image")
    assert fitted.shrunk == ["clip"]
    (shape,) = media_shape(fitted[0], collator.media)
    assert (shape.width, shape.height) == (fitted[0].media_limit, round(fitted[0].media_limit * 272 / 640))
    assert collator(list(fitted))["input_ids"].shape[1] == fitted.lengths[0] <= length // 2
