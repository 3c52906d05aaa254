from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import example
from vlmexp.data.example import Example
from vlmexp.errors import UserError
from vlmexp.evaluation.blind import with_blank_images, with_other_images


def test_every_question_gets_an_image_that_is_not_its_own(draw):
    colors = ["red", "blue", "black", "teal"]
    examples = [example(f"{k}?", "yes", draw(colors[k % 4]), id=str(k)) for k in range(40)]
    blinded = with_other_images(examples, seed=0)
    assert [e.id for e in blinded] == [e.id for e in examples]
    assert all(new.images != old.images for new, old in zip(blinded, examples, strict=True))
    assert {e.images for e in blinded} == {e.images for e in examples}
    assert blinded == with_other_images(examples, seed=0)
    assert blinded != with_other_images(examples, seed=1)


def test_an_example_without_partner_stays(draw):
    examples = [example("a?", "b"), example("c?", "d", draw("red"))]
    assert with_other_images(examples, seed=0) == examples


def test_blank_images_have_the_size_of_those_they_replace(draw, tmp_path):
    (blinded,) = with_blank_images([example("a?", "b", draw("red", (30, 20)), draw("blue"))], tmp_path / "white")
    assert [Image.open(path).size for path in blinded.images] == [(30, 20), (64, 64)]
    assert Image.open(blinded.images[0]).getextrema() == ((255, 255),) * 3


def test_videos_are_exchanged_and_not_blanked(tmp_path):
    items = [Example(str(n), {}, (), videos=(tmp_path / f"{n}.mp4",)) for n in range(5)]
    for before, after in zip(items, with_other_images(items, seed=0), strict=True):
        assert after.videos != before.videos
        assert after.videos in {item.videos for item in items}
    with pytest.raises(UserError, match=r"evaluation.blind=blank is for images only"):
        with_blank_images(items, tmp_path)


def test_a_copy_under_another_name_is_no_other_image():
    examples = [example("what?", "a", Path(name), id=name) for name in ("red.png", "copy of red.png", "blue.png")]
    blinded = with_other_images(examples, seed=0, shown=lambda path: path.stem.split()[-1])
    assert [row.images[0].name for row in blinded] == ["blue.png", "blue.png", "red.png"]
    assert with_other_images(examples[:2], seed=0, shown=lambda path: path.stem.split()[-1]) == examples[:2]
