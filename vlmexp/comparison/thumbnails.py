"""Small pictures of examples, to be put into a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from vlmexp.data.images import small_image

SIZE = 160  # pixels on the longer side
QUALITY = 70


def find_media(name: str, folders: Sequence[Path]) -> Path | None:
    """The file that a prediction names, below the first folder that has it; None if it is no longer there.

    Args:
        name: relative to the prepared data, absolute, or (from older runs) a bare name in their media folder.
    """
    for folder in folders:
        for path in (folder / name, folder / "media" / name):
            if path.is_file():
                return path
    return None


def thumbnail(path: Path) -> str | None:
    """The picture as a data URI of a few kilobytes; None if Pillow cannot read it."""
    image = small_image(path, SIZE)
    if image is None:
        return None
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
