"""Which row is in which split: the source's own splits, and those that are taken out of its train split."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence

from vlmexp.errors import UserError

SPLITS = ("train", "validation", "test")


def resolved_splits(available: Iterable[str], splits: Mapping[str, str | None]) -> dict[str, str | None]:
    """Which of the source's splits each of ours is; None: to be taken out of the train split.

    A split that the source lacks under its usual name counts as not given; one asked for by another name is an error,
    and so is one that is asked for twice.
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
    for split, other in itertools.combinations(SPLITS, 2):
        if resolved[split] is not None and resolved[split] == resolved[other]:
            raise UserError(
                f"dataset.splits.{split} and dataset.splits.{other} are both {resolved[split]!r}, and no example may "
                f"be in two splits: set dataset.splits.{other if split == 'train' else split}=null to take it out of "
                "the train split."
            )
    return resolved


def media_groups(media: Sequence[Sequence[str]]) -> list[str]:
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


def carve(keys: Sequence[str], fractions: Mapping[str, float], seed: int) -> list[str]:
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


def split_rule(splits: Mapping[str, str | None], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Where the rows of each split are from, in words."""
    return {
        split: f"the source's {wanted!r}"
        if wanted is not None
        else f"{fractions[split]:.3g} of the images of 'train', chosen by their hash with seed {seed}"
        for split, wanted in splits.items()
    }
