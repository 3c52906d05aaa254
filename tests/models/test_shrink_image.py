"""Smaller images for rows that are too long: which families can, and that the size found is the largest that fits."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import example
from tests.models.families import FAMILIES
from vlmexp.collator import shrink
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.collator.media import media_shape
from vlmexp.errors import UserError
from vlmexp.parts import build_collator

# Choice -> tokens of a question about an image of 224 x 224 pixels, and about the same image at 16 x 16.
TOKENS = {
    "qwen2vl": (48, 43), "qwen25vl": (48, 43), "qwen3vl": (48, 43), "llava15": (46, 46), "llava_next": (64, 50),
    "llava_onevision": (61, 47), "internvl2": (60, 44), "internvl3": (60, 44), "paligemma": (21, 21),
    "paligemma2": (21, 21), "gemma3": (44, 44), "idefics3": (71, 71), "smolvlm": (71, 71), "phi3vision": (58, 58),
}  # fmt: skip


@pytest.mark.parametrize("choice", list(FAMILIES))
def test_a_row_gets_the_largest_image_that_fits(choice, compose, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(shrink, "SMALLEST", 16)  # the tiny models' tiles are smaller than those of others
    Image.new("RGB", (224, 224), "red").save(tmp_path / "red.png")
    processor = FAMILIES[choice]()[1]
    collator = build_collator(compose(f"model={choice}"), processor)
    item = example("is it red?", "yes", tmp_path / "red.png", id="red")
    sizes = [item, dataclasses.replace(item, media_limit=16)]
    length, least = token_lengths(collator, sizes, with_answer=True)
    assert (length, least) == TOKENS[choice]
    if least == length:
        with pytest.raises(UserError, match=r"Example red is 2 tokens longer .* with images of 16 pixels still 2:"):
            fit(collator, [item], length - 2, "shrink_image")
        return
    room = (length + least) // 2
    fitted = fit(collator, [item], room, "shrink_image")
    assert fitted.shrunk == ["red"]
    limit = fitted[0].media_limit
    assert collator([fitted[0]])["input_ids"].shape[1] == fitted.lengths[0] <= room
    assert token_lengths(collator, [dataclasses.replace(item, media_limit=limit + 1)], with_answer=True)[0] > room
    assert media_shape(fitted[0], collator.media) == ((limit, limit),)
