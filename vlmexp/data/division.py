"""From what was read of a source's splits to the rows of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vlmexp.data.duplicates import PAIRS, Part, without_shared
from vlmexp.data.splits import carve
from vlmexp.errors import UserError


@dataclass(frozen=True)
class Division:
    """The rows of each split.

    Attributes:
        parts: split -> its rows.
        pairs: of parts, of which the first should show nothing that the second shows.
        dropped: rows that have left the train split because they do.
    """

    parts: dict[str, Part]
    pairs: list[tuple[Part, Part]]
    dropped: int


def divide(
    read: Mapping[str, Part], fractions: Mapping[str, float], names: Sequence[str], seed: int, drop_from_train: bool
) -> Division:
    """Take the splits that the source lacks out of its train split.

    Args:
        read: the source's splits, by our names.
        fractions: of the train split, for each split that the source lacks.
        names: of the contents, see `carve`.
        drop_from_train: leave out the rows of the train split that show what another of the source's splits shows.

    Raises:
        UserError: no row of the train split would be left.
    """
    parts, pairs, dropped = dict(read), list[tuple[Part, Part]](), 0
    if "train" in parts:
        train = parts["train"]
        if drop_from_train:
            given = [part for split, part in read.items() if split != "train"]
            pairs = [(train, part) for part in given]
            train = without_shared(train, given)
            dropped = int(read["train"].mask.sum() - train.mask.sum())
        if not train.mask.any():
            raise UserError(
                "dataset.on_duplicates=drop_from_train leaves no row of the train split: all show what rows of the "
                "validation or test split show. Are the splits one file?"
            )
        parts |= _carved(train, fractions, names, seed)
    pairs += [(parts[split], parts[other]) for split, other in PAIRS if split in parts and other in parts]
    return Division(parts, pairs, dropped)


def _carved(train: Part, fractions: Mapping[str, float], names: Sequence[str], seed: int) -> dict[str, Part]:
    """The train split, and the splits that are taken out of it."""
    assigned = np.full(len(train.mask), "", "<U10")
    assigned[train.mask] = carve(train.shown.groups()[train.mask], names, fractions, seed)
    found = {split: Part(split, train.rows, train.shown, assigned == split) for split in ("train", *fractions)}
    return {split: part for split, part in found.items() if part.mask.any()}
