"""Prepared data: the splits of a data set on disk, made once and checked whenever they are used again.

<paths.data>/<name>-<hash of the request>/
    manifest.json                          request, split rule, counts, fingerprint
    train.arrow validation.arrow test.arrow   the source's columns, memory-mapped when read
    media/                                 every distinct image once, as encoded by the source
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from tqdm import tqdm

from vlmexp.data.sources import Rows, find_source
from vlmexp.errors import UserError
from vlmexp.files import digest, file_digest, new_folder, read_json, write_json

SPLITS = ("train", "validation", "test")
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
_FORMAT = 1  # raise it when the same request would be prepared in another way
_CHUNK = 10_000  # rows converted at a time
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: its folder and the content of its manifest.json."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of the splits and with any image."""
        return str(self.manifest["fingerprint"])

    def arrow(self, split: str) -> Path:
        return self.folder / f"{split}.arrow"


def prepare(
    data_dir: Path,
    name: str,
    version: str,
    source: str,
    options: Mapping[str, Any],
    splits: Mapping[str, str | None],
    validation_fraction: float,
    test_fraction: float,
    split_seed: int,
    media_columns: tuple[str, ...],
) -> Prepared:
    """Return the prepared data set, making it first if it is not there or no longer what it was.

    A split that the source lacks is taken out of the train split: whole images, with all their questions, in the order
    of the hash of the image and `split_seed`. So no image is in two splits.

    Raises:
        UserError: unknown source or option, a split that the source does not have, or no rows.
    """
    rows_of = find_source(source, options)
    request = {
        "format": _FORMAT,
        "name": name,
        "version": version,
        "source": source,
        "options": dict(options),
        "inputs": {str(v): file_digest(Path(v)) for v in options.values() if isinstance(v, str) and Path(v).is_file()},
        "splits": dict(splits),
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "split_seed": split_seed,
        "media_columns": list(media_columns),
    }
    folder = data_dir.expanduser() / f"{name}-{digest(request)[:12]}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"paths.data={data_dir} cannot be written: {error.strerror}. Set paths.data or VLMEXP_DATA."
        ) from None
    with FileLock(folder.with_suffix(".lock")):
        if (folder / "manifest.json").exists():
            manifest = read_json(folder / "manifest.json")
            if _fingerprint(folder) == manifest["fingerprint"]:
                return Prepared(folder, manifest)
            log.warning(
                "The prepared data in %s are not what they were when they were written: preparing them again.", folder
            )
        inputs = dict(options)
        if "media_columns" in inspect.signature(rows_of).parameters:
            inputs["media_columns"] = media_columns
        fractions = {"validation": validation_fraction, "test": test_fraction}
        available = rows_of(**inputs)
        resolved = _resolved(available, splits)
        with new_folder(folder) as temporary:
            tables, keys = _store(available, resolved, media_columns, temporary, name)
            if not keys:
                raise UserError(f"dataset={name}: the train split has no rows.")
            missing = {split: fraction for split, fraction in fractions.items() if resolved[split] is None}
            assigned = np.array(_carve(_groups(keys), missing, split_seed))
            parts = {split: tables["train"].filter(pa.array(assigned == split)) for split in ("train", *missing)}
            counts = _write({**tables, **{split: part for split, part in parts.items() if len(part)}}, temporary)
            rule = _rule(resolved, fractions, split_seed)
            manifest = {
                "request": request,
                "split_rule": rule,
                "counts": counts,
                "fingerprint": _fingerprint(temporary),
            }
            write_json(temporary / "manifest.json", manifest)
    return Prepared(folder, manifest)


def _resolved(available: Iterable[str], splits: Mapping[str, str | None]) -> dict[str, str | None]:
    """Which of the source's splits each of ours is; None: to be taken out of the train split.

    A split that the source lacks under its usual name counts as not given; one asked for by another name is an error.
    """
    available = list(available)
    resolved: dict[str, str | None] = {}
    for split in SPLITS:
        wanted = splits.get(split)
        if wanted is not None and wanted not in available and (wanted != split or split == "train"):
            raise UserError(
                f"dataset.splits.{split}={wanted}: the source has no such split; it has {', '.join(available)}."
            )
        resolved[split] = wanted if wanted in available else None
    if resolved["train"] is None:
        raise UserError(f"dataset.splits.train is not set; the source has {', '.join(available)}.")
    return resolved


def _store(
    available: Mapping[str, Rows],
    splits: Mapping[str, str | None],
    media_columns: tuple[str, ...],
    folder: Path,
    name: str,
) -> tuple[dict[str, pa.Table], list[list[str]]]:
    """Store the media; return one table of rows for each split, and the media of every row of train."""
    media = _Media(folder / "media")
    tables: dict[str, pa.Table] = {}
    keys: list[list[str]] = []
    for split, source_split in splits.items():
        if source_split is None:
            continue
        chunks, rows = [], []
        progress = tqdm(available[source_split], f"prepare {name} {split}", unit=" rows", leave=False)
        for number, original in enumerate(progress):
            row = original | {column: media.store(original[column]) for column in media_columns if original.get(column)}
            row["id"] = str(original.get("id", original.get("question_id", f"{split}-{number}")))
            rows.append(row)
            if split == "train":
                keys.append(_media_of(row, media_columns) or [f"row {number}"])
            if len(rows) == _CHUNK:
                chunks.append(pa.Table.from_pylist(rows))
                rows = []
        chunks += [pa.Table.from_pylist(rows)] if rows else []
        if chunks:
            tables[split] = pa.concat_tables(chunks, promote_options="permissive")
    return tables, keys


def _media_of(row: Mapping[str, Any], media_columns: tuple[str, ...]) -> list[str]:
    values = [row[column] for column in media_columns if row.get(column)]
    return [str(path) for value in values for path in (value if isinstance(value, list) else [value])]


def _groups(media: Sequence[Sequence[str]]) -> list[str]:
    """For each row, a name that it shares with every row that it shares an image with, directly or through others."""
    parent: dict[str, str] = {}

    def root(image: str) -> str:
        while parent.setdefault(image, image) != image:
            image = parent[image] = parent[parent[image]]
        return image

    for images in media:
        for image in images:
            first, second = sorted((root(images[0]), root(image)))
            parent[second] = first
    return [root(images[0]) for images in media]


def _carve(keys: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
    """The split of each row of train: images in the order of their seeded hash, the first of them for each fraction.

    A fraction above 0 takes at least one image, as long as one remains to train on.
    """
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    split_of, start = dict.fromkeys(order, "train"), 0
    for split, fraction in fractions.items():
        end = start + (max(1, round(fraction * len(order))) if fraction > 0 else 0)
        if end < len(order):
            split_of |= dict.fromkeys(order[start:end], split)
            start = end
    return [split_of[key] for key in keys]


def _write(tables: Mapping[str, pa.Table], folder: Path) -> dict[str, int]:
    """Write one Arrow stream a split; returns the number of rows of each."""
    for split, table in tables.items():
        with pa.OSFile(str(folder / f"{split}.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as writer:
            writer.write_table(table)
    return {split: len(tables[split]) if split in tables else 0 for split in SPLITS}


class _Media:
    """Stores encoded media under the hash of their bytes, so that each distinct one is stored once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()

    def store(self, value: Any) -> str | list[str]:
        """The path to keep in the row: relative to the prepared folder for stored bytes, absolute for files."""
        if isinstance(value, list):
            return [str(self.store(item)) for item in value]
        if isinstance(value, dict):  # how the datasets library hands out an undecoded image
            value = value["bytes"] if value.get("bytes") else Path(value["path"])
        if isinstance(value, bytes):
            ending = next((e for magic, e in _ENDINGS.items() if value.startswith(magic)), ".bin")
            path = self.folder / f"{hashlib.sha256(value).hexdigest()[:20]}{ending}"
            if not path.exists():
                path.write_bytes(value)
            return f"media/{path.name}"
        return str(Path(value).expanduser().absolute())


def _fingerprint(folder: Path) -> str:
    """Hash of the splits' bytes and of the stored media's names (which are hashes of their content) and sizes."""
    with os.scandir(folder / "media") as entries:
        media = sorted((entry.name, entry.stat().st_size) for entry in entries)
    return digest({"splits": {path.name: file_digest(path) for path in folder.glob("*.arrow")}, "media": media})


def _rule(splits: Mapping[str, str | None], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    return {
        split: f"the source's {wanted!r}"
        if wanted is not None
        else f"{fractions[split]:.3g} of the images of 'train', chosen by their hash with seed {seed}"
        for split, wanted in splits.items()
    }
