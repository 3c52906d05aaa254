"""What a frozen vision tower makes of pictures, kept on disk and given to the model in the place of their pixels.

A file holds the features of one set of media, as an example shows them, and is named by all that they depend on: the
files' contents, how pixels are made of them, and the tower. A file has all of its content or is not there, so that
several processes may write, and anybody may remove, whatever they like at any moment.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from vlmexp.collator.media import MediaOptions, shown_media
from vlmexp.data.example import Example
from vlmexp.files import digest, file_digest
from vlmexp.models.encoders import marked

if TYPE_CHECKING:
    from vlmexp.collator.encode import Row

_KNOWN_SIZES = 512  # of media, whose tokens are kept in mind
# Name of an input that holds pixels -> features [tokens, width] or [tiles, tokens of a tile, width].
Record = dict[str, torch.Tensor]


@dataclass
class StoredFeatures:
    """The features of one tower, for the collators of one process.

    Attributes:
        folder: of this tower.
        looks: a hash of how files become pixels.
        rows: (sizes of media, text up to their end) -> a row of tokens, see vlmexp.collator.encode.
    """

    folder: Path
    looks: str
    rows: OrderedDict[Any, tuple[Row, list[int], dict[str, torch.Tensor]]] = field(default_factory=OrderedDict)

    def key(self, example: Example, options: MediaOptions) -> str:
        """The name of the file for an example's media."""
        images, videos = shown_media(example, options)
        shown = [_content(path) for path in images], [_content(path) for path in videos]
        return digest([self.looks, example.media_limit, *shown])

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def has(self, key: str) -> bool:
        """Whether there is a file for these media."""
        return self.path(key).exists()

    def read(self, key: str) -> Record | None:
        """The features of one set of media; None if there are none, or their file is damaged."""
        try:
            found: Record = load(self.path(key).read_bytes())
        except (OSError, SafetensorError):
            return None
        return found

    def write(self, key: str, record: Record) -> None:
        """Keep the features of one set of media, unless the folder is being removed; raises OSError."""
        path = self.path(key)
        temporary = path.with_name(f".{key}.{os.getpid()}.{threading.get_ident()}")
        try:
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # what a folder's removal leads to
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_bytes(save({name: value.cpu().clone() for name, value in record.items()}))
                temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def given(self, examples: Sequence[Example], options: MediaOptions) -> dict[str, torch.Tensor] | None:
        """The inputs that hold the features of all of these examples, in their order; None if some are not there."""
        records = list[Record]()
        for example in examples:
            record = self.read(self.key(example, options))
            if record is None:
                return None
            records.append(record)
        names = dict.fromkeys(name for record in records for name in record)
        return {name: marked(_in_turn([record[name] for record in records if name in record])) for name in names}

    def remember(self, key: Any, row: tuple[Row, list[int], dict[str, torch.Tensor]]) -> None:
        """Keep in mind how media of a size become tokens."""
        self.rows[key] = row
        if len(self.rows) > _KNOWN_SIZES:
            self.rows.popitem(last=False)


def _in_turn(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """Features one behind the other; where tiles have different numbers of tokens (videos), as one large tile."""
    if len({part.shape[1:] for part in parts}) == 1:
        return torch.cat(list(parts))
    return torch.cat([part.reshape(1, -1, part.shape[-1]) for part in parts], dim=1)


def without_pixels(inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of a processor's inputs those that depend on sizes alone."""
    return {name: value for name, value in inputs.items() if not name.startswith("pixel_")}


def _content(path: Path) -> str:
    about = path.stat()
    return _digest(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(2**16)
def _digest(path: Path, _size: int, _changed: int) -> str:
    return file_digest(path)
