"""Which row is in which split: the source's own splits, and those that are taken out of its train split."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vlmexp.errors import UserError

SPLITS = ("train", "validation", "test")


class UnknownSplit(UserError):
    """The source has no split of this name; `available` are those that it has."""

    def __init__(self, text: str, available: Sequence[str]) -> None:
        super().__init__(text)
        self.available = available


def resolved_splits(available: Iterable[str], splits: Mapping[str, str | None]) -> dict[str, str | None]:
    """Which of the source's splits each of ours is; None: to be taken out of the train split.

    A split that the source lacks under its usual name counts as not given; one asked for by another name is an error,
    and so is one that is asked for twice, or no split at all.
    """
    available = list(available)
    resolved: dict[str, str | None] = {}
    for split in SPLITS:
        wanted = splits.get(split)
        if wanted is not None and wanted not in available and wanted != split:
            raise UnknownSplit(
                f"dataset.splits.{split}={wanted}: the source has no such split; it has {', '.join(available)}.",
                available,
            )
        resolved[split] = wanted if wanted in available else None
    if not any(resolved.values()):
        raise UnknownSplit(
            f"dataset.splits name no split of the source, which has {', '.join(available)}: set dataset.splits.train, "
            "or dataset.splits.test to evaluate alone.",
            available,
        )
    for split, other in itertools.combinations(SPLITS, 2):
        if resolved[split] is not None and resolved[split] == resolved[other]:
            raise UserError(
                f"dataset.splits.{split} and dataset.splits.{other} are both {resolved[split]!r}, and no example may "
                f"be in two splits: set dataset.splits.{other if split == 'train' else split}=null to take it out of "
                "the train split."
            )
    return resolved


def require_train(available: Sequence[str], there: bool | int) -> None:
    """Raise a UserError if there is no train split."""
    if not there:
        raise UserError(
            "There is no train split to train on: dataset.splits.train is not set to one that the source has "
            f"({', '.join(available)}). Set it, or, with dataset=files, dataset.options.train=FILE. An evaluation "
            "alone (stage=eval_base, or stage=eval_finetuned with run=) needs none."
        )


def carve(groups: np.ndarray, names: Sequence[str], fractions: Mapping[str, float], seed: int) -> np.ndarray:
    """[rows] the split of each row of train: groups in the order of their seeded hash, the first for each fraction.

    A fraction above 0 takes at least one group, as long as one remains to train on.

    Args:
        groups: [rows] a number that rows have in common which must stay together.
        names: of the groups from 0 on; a number below 0 is its own name.
    """
    distinct, places = np.unique(groups, return_inverse=True)
    keys = [names[group] if group >= 0 else f"text {group}" for group in distinct.tolist()]
    order = sorted(range(len(keys)), key=lambda index: hashlib.sha256(f"{seed}:{keys[index]}".encode()).digest())
    split_of, start = np.full(len(keys), "train", "<U10"), 0
    for split, fraction in fractions.items():
        end = start + (max(1, round(fraction * len(order))) if fraction > 0 else 0)
        if end < len(order):
            split_of[order[start:end]] = split
            start = end
    return split_of[places]


def split_rule(splits: Mapping[str, str | None], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """Where the rows of each split are from, in words."""
    return {
        split: f"the source's {wanted!r}"
        if wanted is not None
        else "none, as there is no train split to take it from"
        if splits["train"] is None
        else f"{fractions[split]:.3g} of the images of 'train', chosen by their hash with seed {seed}"
        for split, wanted in splits.items()
    }
