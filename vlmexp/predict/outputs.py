"""Predictions as lines, and as a table that a spreadsheet may open."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmexp.data.example import Example

_STARTS_FORMULA = ("=", "+", "-", "@", "\t", "\n")


def prediction_line(example: Example, answer: Mapping[str, Any], name_of: Callable[[Path], str]) -> dict[str, Any]:
    """A question and what the model says: id, media, the texts of the prompt, prediction, and what else is kept.

    Args:
        name_of: how a file is named.
    """
    media = {"images": example.images, "videos": example.videos}
    return {
        "id": example.id,
        **{kind: [name_of(path) for path in paths] for kind, paths in media.items() if paths},
        **(example.fields if not example.turns else {"question": example.turns[-1].text}),
        **answer,
        **(example.metadata or {}),
    }


def as_csv(lines: Sequence[Mapping[str, Any]]) -> str:
    """The lines as a table; the files of a question in one cell, the candidates of a ranking left out.

    A text that a spreadsheet would compute (it begins with =, +, -, @) gets an apostrophe before it, unless it is a
    number. See https://owasp.org/www-community/attacks/CSV_Injection; the lines themselves have it as it is.
    """
    columns = list(dict.fromkeys(name for line in lines for name in line if name != "ranking"))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(map(_cell, columns))
    writer.writerows([_cell(line.get(column)) for column in columns] for line in lines)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        value = "; ".join(map(str, value))
    text = "" if value is None else str(value).replace("\r\n", "\n").replace("\r", "\n")  # csv leaves these unquoted
    return f"'{text}" if text.lstrip(" ").startswith(_STARTS_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def counted(lines: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many were answered, how many of these came to the limit without an end, and how many could not be asked."""
    found = list(lines)
    return {
        "answered": sum("prediction" in line for line in found),
        "cut": sum(bool(line.get("cut")) for line in found),
        "failed": sum("error" in line for line in found),
    }
