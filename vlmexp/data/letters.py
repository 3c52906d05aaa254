"""Choices with their letters."""

from __future__ import annotations

from collections.abc import Iterable
from string import ascii_uppercase


def letter(number: int) -> str:
    """The letter of a choice, counted from 0: A to Z, then AA, AB and so on."""
    return ("" if number < 26 else letter(number // 26 - 1)) + ascii_uppercase[number % 26]


def lettered(choices: Iterable[str]) -> str:
    """A line for each choice: `A. red`, `B. green`."""
    return "\n".join(f"{letter(number)}. {choice}" for number, choice in enumerate(choices))
