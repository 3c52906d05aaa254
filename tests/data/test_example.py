from __future__ import annotations

import pytest
from PIL import Image

from vlmexp.data.example import Example, image_size, load_image
from vlmexp.errors import UserError


def test_the_most_common_answer_is_trained_on():
    assert Example("0", {}, ("a", "b", "b")).answer == "b"
    assert Example("0", {}, ("b", "a")).answer == "b"
    assert Example("0", {}, ()).answer == ""


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb(mode, tmp_path):
    path = tmp_path / ("image.tif" if mode == "CMYK" else "image.png")
    Image.new(mode, (5, 3)).save(path)
    image = load_image(path)
    assert image.mode == "RGB"
    assert image.size == image_size(path) == (5, 3)


def test_transparency_is_shown_on_white(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("orientation", "size"), [(1, (4, 2)), (3, (4, 2)), (6, (2, 4)), (8, (2, 4))])
def test_a_photograph_is_turned_upright(orientation, size, tmp_path):
    image = Image.new("RGB", (4, 2))
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "photo.jpg", exif=exif)
    assert load_image(tmp_path / "photo.jpg").size == image_size(tmp_path / "photo.jpg") == size


@pytest.mark.parametrize(
    ("content", "message"), [(None, "does not exist"), (b"", "cannot be read"), (b"hello, I am text", "cannot be read")]
)
def test_what_is_no_image(content, message, tmp_path):
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    for read in (load_image, image_size):
        with pytest.raises(UserError, match=message):
            read(path)
