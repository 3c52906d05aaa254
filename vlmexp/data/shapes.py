"""Drawn shapes and descriptions of them: the data that the embedded `tiny` model is pre-trained on.

Every image shows one shape on a light background. A description is a few lines in random order, each a caption,
a statement or a list of attributes that are present or not. There is never a question and never an answer, so the
model knows what it sees but not how to answer: that is left for fine-tuning.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from PIL import Image, ImageDraw

COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "teal": (0, 128, 128),
    "brown": (165, 42, 42),
    "black": (0, 0, 0),
    "gray": (128, 128, 128),
}
SHAPES = ("circle", "rectangle", "triangle")
IMAGE_SIZE = 64  # pixels, square
_ROWS, _COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")


def draw(rng: random.Random) -> tuple[Image.Image, dict[str, str]]:
    """One RGB image of `IMAGE_SIZE` pixels and its attributes: color, shape, size, row, column."""
    background = tuple(rng.randint(215, 255) for _ in range(3))
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), background)
    canvas = ImageDraw.Draw(image)
    color, shape = rng.choice(list(COLORS)), rng.choice(SHAPES)
    fill = tuple(min(255, max(0, channel + rng.randint(-12, 12))) for channel in COLORS[color])
    width, height = rng.randint(6, 34), rng.randint(6, 34)
    if shape == "circle":
        height = width
    elif shape == "triangle":
        height = max(5, round(width * rng.uniform(0.7, 1.2)))
    left, top = rng.randint(0, IMAGE_SIZE - 1 - width), rng.randint(0, IMAGE_SIZE - 1 - height)
    right, bottom = left + width, top + height
    if shape == "circle":
        canvas.ellipse([left, top, right, bottom], fill=fill)
    elif shape == "rectangle":
        canvas.rectangle([left, top, right, bottom], fill=fill)
    else:
        apex = left + width // 2 if rng.random() < 0.7 else rng.randint(left, right)
        canvas.polygon([(apex, top), (left, bottom), (right, bottom)], fill=fill)
    third = IMAGE_SIZE / 3
    return image, {
        "color": color,
        "shape": shape,
        "size": "small" if width * height < 300 else "large",
        "row": _ROWS[int((top + bottom) / 2 // third)],
        "column": _COLUMNS[int((left + right) / 2 // third)],
    }


def describe(attributes: dict[str, str], rng: random.Random) -> str:
    """A description in one to three lines, for example

    large red circle top left
    there is not a teal shape in the image
    red present, triangle no, circle present, blue no
    """
    color, shape = attributes["color"], attributes["shape"]
    other_color = rng.choice([c for c in COLORS if c != color])
    other_shape = rng.choice([s for s in SHAPES if s != shape])
    place = f"{attributes['row']} {attributes['column']}"
    caption = rng.choice(
        [
            f"{attributes['size']} {color} {shape} {place}",
            f"{color} {shape}",
            f"{shape}, {color}",
            f"{color}\n{shape}",
            f"{shape}\n{color}",
        ]
    )
    statement = rng.choice(
        [
            f"there is a {rng.choice([f'{color} shape', shape])} in the image",
            f"there is not a {rng.choice([f'{other_color} shape', other_shape])} in the image",
            f"the image does contain a {rng.choice([f'{color} shape', shape])}",
            f"the image does not contain a {rng.choice([f'{other_color} shape', other_shape])}",
            f"a {rng.choice([f'{color} shape', shape])} is present",
            f"no {rng.choice([f'{other_color} shape', other_shape])} is present",
            f"the shape is {rng.choice([color, f'a {shape}'])}",
            f"the {color} shape is a {shape}",
            f"the color of the {rng.choice([shape, 'shape'])} is {color}",
        ]
    )
    named = [rng.choice([color, shape]), *rng.sample(list(COLORS), 2), *rng.sample(SHAPES, 1)]
    rng.shuffle(named)
    separator = rng.choice([", ", "\n"])
    listing = separator.join(f"{name} {'present' if name in (color, shape) else 'no'}" for name in named)
    lines = [caption, statement, listing]
    rng.shuffle(lines)
    return "\n".join(lines[: rng.randint(1, 3)])


def examples(images: int, descriptions_per_image: int, seed: int) -> Iterator[tuple[Image.Image, list[str]]]:
    """Yield `images` pairs of an image and its descriptions; the same seed gives the same pairs."""
    rng = random.Random(seed)
    for _ in range(images):
        image, attributes = draw(rng)
        yield image, [describe(attributes, rng) for _ in range(descriptions_per_image)]
