"""What an option can be, beside its default: a number's range, a text that may be empty, a list without doubles."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

LARGEST_COUNT = 2**31 - 1  # what the C code below the libraries counts with
LARGEST_SEED = 2**32 - 1  # of numpy's generators


@dataclass(frozen=True)
class Bounds:
    """The numbers that an option can be: always finite, and whole ones up to LARGEST_COUNT unless `most` is given."""

    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    empty: bool = False  # whether a text may be
    distinct: bool = False  # whether no item of a list may be there twice
    fewest: int = 0  # items of a list

    def complaint(self, number: float) -> str | None:
        """`must be at least 1` and the like; None for a number that may be."""
        if isinstance(number, float) and not math.isfinite(number):
            return "must be a finite number"
        checks = (
            (self.least, "at least", lambda bound: number >= bound),
            (self.above, "more than", lambda bound: number > bound),
            (self.most, "at most", lambda bound: number <= bound),
            (self.below, "less than", lambda bound: number < bound),
        )
        given = [(f"{word} {bound}", holds(bound)) for bound, word, holds in checks if bound is not None]
        if not all(holds for _, holds in given):
            return f"must be {' and '.join(text for text, _ in given)}"
        if isinstance(number, int) and self.most is None and abs(number) > LARGEST_COUNT:
            return f"must be at most {LARGEST_COUNT}"
        return None


def number(default: float | None, *, above: float | None = None, most: float | None = None) -> Any:
    """The field of a number."""
    return dataclasses.field(default=default, metadata=bounds(above=above, most=most))


def count(default: int | None, *, least: int = 1, most: int | None = None) -> Any:
    """The field of a whole number, of things or of places."""
    return dataclasses.field(default=default, metadata=bounds(least=least, most=most))


def share(default: float) -> Any:
    """The field of a part of a whole, and less than all of it."""
    return dataclasses.field(default=default, metadata=bounds(least=0, below=1))


def text(default: str | None) -> Any:
    """The field of a text that may be empty."""
    return dataclasses.field(default=default, metadata=bounds(empty=True))


def bounds(**given: Any) -> dict[str, Bounds]:
    """The metadata of a field with these bounds for what it holds."""
    return {"bounds": Bounds(**given)}


def bounds_of(item: dataclasses.Field[Any]) -> Bounds:
    """Those of a field; without any of its own a number is finite and a text not empty."""
    found = item.metadata.get("bounds", Bounds())
    assert isinstance(found, Bounds)
    return found
