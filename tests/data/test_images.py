"""Whatever Pillow opens becomes the picture that a person would see, and its size is known without decoding it."""

from __future__ import annotations

import contextlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vlmexp.data.images import ImageOptions, MediaError, image_size, load_image


@pytest.mark.parametrize(
    ("mode", "ending"),
    [
        ("1", "png"), ("L", "png"), ("P", "png"), ("RGB", "png"), ("RGBA", "png"), ("LA", "png"), ("I;16", "png"),
        ("CMYK", "jpg"), ("CMYK", "tif"), ("LAB", "tif"), ("YCbCr", "tif"), ("F", "tif"), ("I", "tif"), ("PA", "tif"),
        ("I;16B", "tif"), ("RGB", "bmp"), ("RGB", "webp"), ("P", "gif"), ("RGB", "ppm"), ("RGB", "tga"),
    ],
)  # fmt: skip
def test_every_mode_becomes_rgb(mode, ending, tmp_path):
    path = tmp_path / f"image.{ending}"
    Image.new("RGB", (5, 3)).convert("L").convert("LA").save(path) if mode == "PA" else Image.new(mode, (5, 3)).save(
        path
    )
    image = load_image(path)
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    assert image.size == image_size(path) == (5, 3)


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([0, 257, 32_896, 65_535], np.uint16, [0, 1, 128, 255]),
        ([0, 200, 65_535, 65_535], np.int32, [0, 1, 255, 255]),
        ([-1, 0, 0, 1], np.int32, [0, 128, 128, 255]),
        ([0.0, 0.2, 0.5, 1.0], np.float32, [0, 51, 128, 255]),
        ([0.0, 2.0, 128.0, 255.0], np.float32, [0, 2, 128, 255]),
        ([0.0, 1000.0, 500.0, 250.0], np.float32, [0, 255, 128, 64]),
        ([7.0, 7.0, 7.0, float("nan")], np.float32, [0, 0, 0, 0]),
    ],
)
def test_more_than_eight_bits_are_scaled_and_not_clipped(values, dtype, expected, tmp_path):
    Image.fromarray(np.array([values], dtype)).save(tmp_path / "deep.tif")
    assert np.asarray(load_image(tmp_path / "deep.tif"))[0, :, 0].tolist() == expected


def test_a_png_of_sixteen_bits(tmp_path):
    Image.fromarray(np.array([[0, 32_896, 65_535]], np.uint16)).save(tmp_path / "deep.png")
    assert np.asarray(load_image(tmp_path / "deep.png"))[0, :, 1].tolist() == [0, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_shown_on_white(mode, tmp_path):
    image = Image.new("RGBA", (2, 2), (255, 0, 0, 0))
    image.convert(mode).save(tmp_path / "clear.png", **({"transparency": 0} if mode == "P" else {}))
    if mode == "P":
        Image.new("P", (2, 2), 0).save(tmp_path / "clear.png", transparency=0)
    assert load_image(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)


def test_the_mode_can_be_left_to_the_processor(tmp_path):
    Image.new("RGBA", (2, 2), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_image(tmp_path / "clear.png", ImageOptions(convert_to_rgb=False)).mode == "RGBA"


def test_of_an_animation_the_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "green", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    assert load_image(tmp_path / "moving.gif").getpixel((0, 0)) == (255, 0, 0)


CORNERS = {1: "rgbw", 2: "grwb", 3: "wbgr", 4: "bwrg", 5: "rbgw", 6: "brwg", 7: "wgbr", 8: "gwrb"}


@pytest.mark.parametrize("ending", ["png", "tif"])
@pytest.mark.parametrize("orientation", CORNERS)
def test_a_photograph_is_turned_upright(orientation, ending, tmp_path):
    """The corners in reading order, for every value of the EXIF tag."""
    colors = {"r": (255, 0, 0), "g": (0, 255, 0), "b": (0, 0, 255), "w": (255, 255, 255)}
    image = Image.new("RGB", (4, 2))
    for place, name in zip([(0, 0), (3, 0), (0, 1), (3, 1)], "rgbw", strict=True):
        image.putpixel(place, colors[name])
    exif = image.getexif()
    exif[0x0112] = orientation
    path = tmp_path / f"photo.{ending}"
    image.save(path, exif=exif)
    upright = load_image(path)
    width, height = upright.size
    assert (width, height) == image_size(path) == ((4, 2) if orientation < 5 else (2, 4))
    found = [upright.getpixel(p) for p in [(0, 0), (width - 1, 0), (0, height - 1), (width - 1, height - 1)]]
    assert found == [colors[name] for name in CORNERS[orientation]]


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b""])
def test_damaged_exif_data_do_no_harm(exif, tmp_path):
    Image.new("RGB", (4, 2), "red").save(tmp_path / "photo.jpg", exif=exif)
    assert load_image(tmp_path / "photo.jpg").size == image_size(tmp_path / "photo.jpg") == (4, 2)


@pytest.mark.parametrize(
    ("mode", "limit", "before", "after"),
    [
        ("keep_aspect", 32, (64, 48), (32, 24)),
        ("keep_aspect", 32, (48, 64), (24, 32)),
        ("keep_aspect", 32, (20, 10), (20, 10)),
        ("keep_aspect", 32, (32, 10), (32, 10)),
        ("keep_aspect", 100, (1, 4000), (1, 100)),
        ("crop", 32, (64, 48), (32, 32)),
        ("crop", 32, (20, 10), (32, 32)),
        ("stretch", 32, (64, 48), (32, 32)),
        ("stretch", 8, (1, 4000), (8, 8)),
        ("crop", None, (64, 48), (64, 48)),
    ],
)
def test_sizes(mode, limit, before, after, tmp_path):
    Image.new("RGB", before).save(tmp_path / "image.png")
    options = ImageOptions(resize_mode=mode, max_size=limit)
    assert load_image(tmp_path / "image.png", options).size == image_size(tmp_path / "image.png", options) == after


def test_a_crop_is_the_middle_and_a_stretch_is_all_of_it(tmp_path):
    image = Image.new("RGB", (90, 30), "red")
    image.paste((0, 255, 0), (30, 0, 60, 30))
    image.save(tmp_path / "flag.png")
    cropped, stretched = (
        load_image(tmp_path / "flag.png", ImageOptions(resize_mode=mode, max_size=30)) for mode in ("crop", "stretch")
    )
    assert set(cropped.get_flattened_data()) == {(0, 255, 0)}
    assert stretched.getpixel((0, 15)) == stretched.getpixel((29, 15)) == (255, 0, 0)
    assert stretched.getpixel((15, 15)) == (0, 255, 0)


def bomb() -> bytes:
    """A PNG whose header promises 20,000 x 20,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def encoded(format: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason", "message"),
    [
        (None, "missing", "does not exist"),
        ("folder", "not a file", "is a folder and not a file"),
        (b"", "unknown format", "cannot be read"),
        (b"hello, I am text", "unknown format", "no format that Pillow knows"),
        (b"<html><body>404 Not Found</body></html>", "unknown format", "cannot be read"),
        (bomb(), "too large", "more than 178,956,970 pixels"),
    ],
)
def test_what_is_no_image(content, reason, message, tmp_path):
    path = tmp_path / "image.png"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    for read in (load_image, image_size):
        with pytest.raises(MediaError, match=message) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert caught.value.reason == reason


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_file_that_is_cut_off(format, share, tmp_path):
    whole = encoded(format)
    (tmp_path / "cut").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(MediaError, match="cannot be read") as caught:
        load_image(tmp_path / "cut")
    assert caught.value.reason in ("damaged", "unknown format")


@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "ICO", "PPM", "TGA", "PCX"])
def test_noise_in_a_file_is_a_picture_or_our_error(format, tmp_path):
    """Any other exception fails the test."""
    whole = encoded(format)
    rng = np.random.default_rng(0)
    for trial in range(40):
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 400), 6):
            damaged[place] = rng.integers(256)
        (tmp_path / str(trial)).write_bytes(damaged)
        for read in (load_image, image_size):
            with contextlib.suppress(MediaError):
                read(tmp_path / str(trial))
