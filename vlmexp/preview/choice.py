"""Which rows are shown."""

from __future__ import annotations

import random
from collections.abc import Sequence

from vlmexp.errors import UserError, closest


def positions(ids: Sequence[str], wanted: Sequence[str], split: str) -> list[int]:
    """Where the wanted ids are in the split.

    Raises:
        UserError: the split has no row with such an id.
    """
    place = {name: index for index, name in enumerate(ids)}
    for name in wanted:
        if name not in place:
            raise UserError(
                f"preview.ids: the {split} split has no row {name!r}{closest(name, place) or '.'} "
                f"Its ids are like {ids[0]!r}; another split is preview.split."
            )
    return [place[name] for name in wanted]


def sample(rows: Sequence[int], longest: int, keys: Sequence[int], count: int, seed: int) -> list[int]:
    """So many rows at random, each about media of its own, with the longest row as the last of them.

    Args:
        rows: to choose from, as places in the split.
        keys: for each row of the split, equal for rows that count as about the same media.
    """
    chosen = {keys[longest]: longest}
    for row in random.Random(seed).sample(rows, len(rows)):
        if len(chosen) == count:
            break
        chosen.setdefault(keys[row], row)
    return [*list(chosen.values())[1:], longest]


def grouped(rows: Sequence[int], keys: Sequence[int]) -> list[list[int]]:
    """For each row all rows of the split with its key, itself as the first; a key comes once."""
    wanted = {keys[row]: row for row in reversed(rows)}  # the first of several rows with one key
    members: dict[int, list[int]] = {keys[row]: [wanted[keys[row]]] for row in rows}
    for row, key in enumerate(keys):
        if key in wanted and row != wanted[key]:
            members[key].append(row)
    return list(members.values())
