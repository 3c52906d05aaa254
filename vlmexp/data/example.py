"""One question about zero or more images, with its accepted answers."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ExifTags, Image, ImageOps

from vlmexp.errors import UserError, closest

MEDIA_ROLES = ("image",)


@dataclass(frozen=True)
class Example:
    """What the collator and the evaluation see of a row.

    Attributes:
        id: unique within the split.
        fields: text by role, for the message template: question, and any further role.
        answers: the accepted answers, as many times as they were given.
        images: files, in the order in which the prompt shows them.
        metadata: values kept beside the prediction.
    """

    id: str
    fields: Mapping[str, str]
    answers: tuple[str, ...]
    images: tuple[Path, ...] = ()
    metadata: Mapping[str, Any] | None = None

    @property
    def answer(self) -> str:
        """The answer to train on: the most common one, the first of them if several are."""
        return Counter(self.answers).most_common(1)[0][0] if self.answers else ""


def check_columns(
    columns: Mapping[str, str | None], metadata: Iterable[str], present: Iterable[str], split: str
) -> None:
    """Raise a UserError if a role or the metadata name a column that the split does not have."""
    present = sorted(set(present) - {"id"})
    options = [(f"dataset.columns.{role}", column) for role, column in columns.items()]
    for option, column in [*options, *(("dataset.metadata", column) for column in metadata)]:
        if column is not None and column not in present:
            raise UserError(
                f"{option}={column}: the {split} split has no column {column!r}"
                f"{closest(column, present) or '.'} Its columns are: {', '.join(present)}."
            )


def to_example(
    row: Mapping[str, Any], columns: Mapping[str, str | None], metadata: Iterable[str], root: Path
) -> Example:
    """Map a stored row to an Example; media paths are relative to `root`."""
    fields = {
        role: _text(row.get(column))
        for role, column in columns.items()
        if column is not None and role not in ("answer", *MEDIA_ROLES)
    }
    image = row.get(columns.get("image") or "")
    images = image if isinstance(image, list) else [image] if image else []
    answers = row.get(columns.get("answer") or "")
    return Example(
        id=str(row["id"]),
        fields=fields,
        answers=tuple(_text(answer) for answer in answers) if isinstance(answers, list) else (_text(answers),),
        images=tuple(root / path for path in images),
        metadata={name: row.get(name) for name in metadata},
    )


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def image_size(path: Path) -> tuple[int, int]:
    """Width and height in pixels as the model will see them, from the file's header.

    Raises:
        UserError: the file is missing or is no image that Pillow can read.
    """
    with _opened(path) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5  # a quarter turn
        return (image.height, image.width) if turned else (image.width, image.height)


def load_image(path: Path) -> Image.Image:
    """Open an image as RGB, upright, with transparency on white.

    Raises:
        UserError: the file is missing or is no image that Pillow can read.
    """
    with _opened(path) as image:
        upright = ImageOps.exif_transpose(image)
        if upright.mode in ("RGBA", "LA", "PA") or "transparency" in upright.info:
            layer = upright.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
        return upright.convert("RGB")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except FileNotFoundError:
        raise UserError(
            f"The image {path} does not exist. Was the data set moved? stage=download prepares it again."
        ) from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The image {path} cannot be read: {error}.") from None
