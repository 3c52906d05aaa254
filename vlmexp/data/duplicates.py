"""Rows of one split that show what rows of another show, and pictures that look like one of another split."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vlmexp.data.contents import Contents, Shown, described
from vlmexp.data.pictures import alike
from vlmexp.data.row_chunks import RowChunks

# A split, and one that it must be new to.
PAIRS = (("validation", "train"), ("test", "train"), ("test", "validation"))


@dataclass(frozen=True)
class Part:
    """The rows of a split: those of a mask among all that were read from the source's."""

    split: str
    rows: RowChunks
    shown: Shown
    mask: np.ndarray

    @property
    def keys(self) -> np.ndarray:
        """What they show, ascending."""
        return self.shown.of(self.mask)


def without_shared(train: Part, others: list[Part]) -> Part:
    """The train split without the rows that show what rows of the others show."""
    keys = np.concatenate([part.keys for part in others]) if others else np.array([], np.int64)
    return Part(train.split, train.rows, train.shown, train.mask & ~train.shown.have_any(keys))


def write_duplicates(
    path: Path, pairs: list[tuple[Part, Part]], columns: Mapping[str, str | None], contents: Contents
) -> dict[str, dict[str, dict[str, int]]]:
    """Write a line for each row of the first of a pair that shows what a row of the second shows.

    Returns:
        split -> other split -> how many `rows` these are, and how many of them ask the `same_question`; without pairs
        that share nothing.
    """
    found: dict[str, dict[str, dict[str, int]]] = {}
    with path.open("w", encoding="utf-8") as file:
        for part, other in pairs:
            for line in _shared(part, other, columns, contents):
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                count = found.setdefault(part.split, {}).setdefault(other.split, {"rows": 0, "same_question": 0})
                count["rows"] += 1
                count["same_question"] += line["same_question"]
    return found


def _shared(part: Part, other: Part, columns: Mapping[str, str | None], contents: Contents) -> Iterator[dict[str, Any]]:
    """The lines of duplicates.jsonl; the row of the other split is the first that shows the same."""
    keys = np.intersect1d(part.keys, other.keys, assume_unique=True)
    if not len(keys):
        return
    common, first, asked = set(keys.tolist()), dict[int, tuple[str, str | None]](), set[int]()
    for chosen, (row, said, own) in zip(other.mask, described(other.rows, columns, contents), strict=True):
        for key in common.intersection(own) if chosen else ():
            first.setdefault(key, (row, own[key]))
            asked.add(hash((key, repr(said))))
    for chosen, (row, said, own) in zip(part.mask, described(part.rows, columns, contents), strict=True):
        key = next((key for key in own if key in common), None) if chosen else None
        if key is not None:
            yield {
                "split": part.split,
                "id": row,
                "path": own[key],
                "other_split": other.split,
                "other_id": first[key][0],
                "other_path": first[key][1],
                "same_question": any(hash((key, repr(said))) in asked for key in own),
            }


def near_duplicates(parts: Mapping[str, Part], contents: Contents) -> dict[str, dict[str, dict[str, Any]]]:
    """Split -> other split -> how many pictures look like one of the other without being the same, with two of them."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for split, other in PAIRS:
        near = _alike(parts[split], parts[other], contents) if split in parts and other in parts else []
        if near:
            example = [contents.paths[number] for number in near[0]]
            found.setdefault(split, {})[other] = {"pictures": len(near), "example": example}
    return found


def _alike(part: Part, other: Part, contents: Contents) -> list[tuple[int, int]]:
    """Numbers of pictures of a split, each with one of the other that looks the same."""
    theirs = _pictures(other.keys, contents)
    own = np.setdiff1d(_pictures(part.keys, contents), theirs, assume_unique=True)
    places = alike(*([contents.looks[key] for key in keys.tolist()] for keys in (own, theirs)))
    found = places >= 0
    return list(zip(own[found].tolist(), theirs[places[found]].tolist(), strict=True))


def _pictures(keys: np.ndarray, contents: Contents) -> np.ndarray:
    """Those of the keys that are images."""
    return np.array([key for key in keys.tolist() if key >= 0 and contents.looks[key]], np.int64)
