"""Pictures that are taken out of the processors' tensors again."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import example
from tests.models.families import FAMILIES
from vlmexp.collator.media import MediaOptions, media_arguments
from vlmexp.preview.media import seen_media
from vlmexp.preview.pictures import as_uri, seen_pictures

# Where one picture shows all of the image: the first or the last one.
WHOLE = {"internvl2": -1, "internvl3": -1, "idefics3": -1, "smolvlm": -1}
COLORS = [["red", "lime"], ["blue", "yellow"]]


@pytest.fixture
def quarters(tmp_path):
    image = Image.new("RGB", (140, 140))
    for row, colors in enumerate(COLORS):
        for column, color in enumerate(colors):
            image.paste(color, (70 * column, 70 * row, 70 * column + 70, 70 * row + 70))
    image.save(tmp_path / "quarters.png")
    return tmp_path / "quarters.png"


@pytest.mark.parametrize("choice", FAMILIES)
def test_a_picture_is_what_the_file_shows(choice, quarters):
    """Upright, in its colours, in every family's layout of tiles and patches."""
    _, processor = FAMILIES[choice]()
    arguments = media_arguments([example("", "", quarters)], MediaOptions())
    batch = processor.image_processor(arguments["images"][0], return_tensors="pt")
    groups = seen_pictures(batch, processor, only_videos=False)
    pictures = [picture for group in groups for picture in group]
    whole = np.asarray(pictures[WHOLE.get(choice, 0)]).astype(int)
    height, width = whole.shape[:2]
    for row, colors in enumerate(COLORS):
        for column, color in enumerate(colors):
            middle = whole[(2 * row + 1) * height // 4, (2 * column + 1) * width // 4]
            expected = Image.new("RGB", (1, 1), color).getpixel((0, 0))
            assert np.abs(middle - expected).max() <= 3, (color, middle)


def test_patches_come_back_pixel_for_pixel(processor):
    """Qwen-VL's flat patches of an image that needs no resizing."""
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    batch = processor.image_processor([Image.fromarray(pixels)], return_tensors="pt")
    assert batch["image_grid_thw"].tolist() == [[1, 8, 12]]
    ((picture,),) = seen_pictures(batch, processor, only_videos=False)
    assert np.array_equal(np.asarray(picture), pixels)


def test_filling_is_no_picture(processor):
    tiles = torch.zeros(2, 3, 3, 4, 4)
    tiles[0, :2] = 1
    tiles[1, :1] = 1
    groups = seen_pictures({"pixel_values": tiles}, processor, only_videos=False)
    assert [len(group) for group in groups] == [2, 1]


@pytest.mark.parametrize("shape", [(4, 7), (1, 4, 4), (2, 1, 8, 8)])
def test_another_layout_is_no_picture(shape, processor):
    assert seen_pictures({"pixel_values": torch.zeros(shape)}, processor, only_videos=False) is None


def test_where_tensors_are_no_pictures_the_processors_input_is_shown(processor, make_collator, draw):
    class Flat(type(processor)):
        def __call__(self, *args, **kwargs):
            batch = super().__call__(*args, **kwargs)
            batch["pixel_values"] = batch["pixel_values"].unsqueeze(0)
            return batch

    collator = make_collator("collator.image_processing.max_size=48")
    flat = copy.copy(processor)
    flat.__class__ = Flat
    collator.processor = flat
    (medium,) = seen_media(collator, example("q?", "a", draw("red", (64, 32))))
    assert medium.about == (
        "64 x 32 px in the file, 48 x 24 px after collator.image_processing; this is what the processor gets: its "
        "tensors (pixel_values [1, 24, 384]) cannot be turned back into pictures."
    )
    assert [picture.size for picture, _ in medium.pictures] == [(48, 24)]


def test_a_picture_in_a_page_is_small():
    noise = Image.effect_noise((2000, 1000), 60).convert("RGB")
    assert as_uri(noise, 560).startswith("data:image/webp;base64,")
    assert len(as_uri(noise, 560)) < 200_000
