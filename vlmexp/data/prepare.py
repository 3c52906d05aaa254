"""Prepared data: the splits of a data set on disk, made once and checked whenever they are used again.

<paths.data>/<name>-<hash of the request>/
    manifest.json                          request, split rule, counts, fingerprint
    train.arrow validation.arrow test.arrow   the source's columns, memory-mapped when read
    media/                                 every distinct image once, as encoded by the source
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from vlmexp.data.sources import Rows, find_source
from vlmexp.errors import UserError
from vlmexp.files import digest, file_digest, new_folder, read_json, write_json

SPLITS = ("train", "validation", "test")
_ENDINGS = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"GIF8": ".gif", b"RIFF": ".webp", b"BM": ".bmp"}
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

    A split that the source lacks is taken out of the train split: an image, with all its questions, goes where the hash
    of the image and `split_seed` sends it. So no image is in two splits, and the rule needs no list of all images.

    Raises:
        UserError: unknown source or option, a split that the source does not have, or no rows.
    """
    rows_of = find_source(source, options)
    request = {
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
        if source == "files" or "media_columns" in getattr(rows_of, "__annotations__", {}):
            inputs["media_columns"] = media_columns
        with new_folder(folder) as temporary:
            rows = _assign(
                rows_of(**inputs), splits, validation_fraction, test_fraction, split_seed, media_columns, temporary
            )
            counts = _write(rows, temporary, name)
            if not counts.get("train"):
                raise UserError(f"dataset={name}: the train split has no rows.")
            manifest = {"request": request, "split_rule": _rule(splits, request), "counts": counts}
            manifest["fingerprint"] = _fingerprint(temporary)
            write_json(temporary / "manifest.json", manifest)
    return Prepared(folder, manifest)


def _assign(
    available: Mapping[str, Rows],
    splits: Mapping[str, str | None],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
    media_columns: tuple[str, ...],
    folder: Path,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (split, row) with media stored and split rule applied."""
    media = _Media(folder / "media")
    fractions = {"validation": validation_fraction, "test": test_fraction}
    carved = {split: fractions[split] for split in ("validation", "test") if splits.get(split) is None}
    for split in SPLITS:
        wanted = splits.get(split)
        if wanted is None:
            continue
        if wanted not in available:
            if split != "train":
                carved[split] = fractions[split]
                continue
            raise UserError(
                f"dataset.splits.{split}={wanted}: the source has no such split; it has {', '.join(available)}."
            )
    for split in SPLITS:
        wanted = splits.get(split)
        if wanted is None or wanted not in available:
            continue
        for number, row in enumerate(available[wanted]):
            row = dict(row) | {column: media.store(row[column]) for column in media_columns if row.get(column)}
            if split != "train":
                yield split, row
                continue
            group = "|".join(str(row.get(column)) for column in media_columns if row.get(column)) or f"row {number}"
            yield _carve(group, seed, carved), row


def _carve(group: str, seed: int, carved: Mapping[str, float]) -> str:
    """The split of an image: its hash as a number in [0, 1), compared with the fractions to take out."""
    share = int.from_bytes(hashlib.sha256(f"{seed}:{group}".encode()).digest()[:8], "big") / 2**64
    for split, fraction in carved.items():
        if share < fraction:
            return split
        share -= fraction
    return "train"


def _write(rows: Iterator[tuple[str, dict[str, Any]]], folder: Path, name: str) -> dict[str, int]:
    """Write one Arrow stream a split; returns the number of rows of each."""
    import pyarrow as pa

    chunks: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    tables: dict[str, list[Any]] = {split: [] for split in SPLITS}
    counts = dict.fromkeys(SPLITS, 0)
    for split, row in tqdm(rows, desc=f"prepare {name}", unit=" rows", leave=False):
        chunks[split].append({**row, "id": str(row.get("id", row.get("question_id", f"{split}-{counts[split]}")))})
        counts[split] += 1
        if len(chunks[split]) >= 10_000:
            tables[split].append(pa.Table.from_pylist(chunks[split]))
            chunks[split] = []
    for split in SPLITS:
        if chunks[split]:
            tables[split].append(pa.Table.from_pylist(chunks[split]))
        if tables[split]:
            table = pa.concat_tables(tables[split], promote_options="permissive")
            with (
                pa.OSFile(str(folder / f"{split}.arrow"), "wb") as file,
                pa.ipc.new_stream(file, table.schema) as writer,
            ):
                writer.write_table(table)
    return counts


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


def _rule(splits: Mapping[str, str | None], request: Mapping[str, Any]) -> dict[str, str]:
    rule = {}
    for split in SPLITS:
        if splits.get(split) is not None:
            rule[split] = f"the source's {splits[split]!r}"
        else:
            fraction, seed = request[f"{split}_fraction"], request["split_seed"]
            rule[split] = f"about {fraction:.3g} of the images of 'train', chosen by their hash with seed {seed}"
    return rule
