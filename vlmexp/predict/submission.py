"""The files that test servers take.

    evalai   [{"question_id": 262148000, "answer": "down"}, ...]        VQA v2 (https://visualqa.org/evaluation.html),
                                                                        TextVQA (https://textvqa.org/challenge)
    rrc      [{"questionId": 49153, "answer": "1/8/93"}, ...]           DocVQA, InfographicVQA (https://rrc.cvc.uab.es)
    vizwiz   [{"image": "VizWiz_test_00000000.jpg", "answer": "..."}]   https://vizwiz.org/tasks-and-datasets/vqa

Each question of a split is in it once, and the ids are whole numbers or the names of images.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexp.data.example import is_missing
from vlmexp.errors import UserError, closest

Id = int | str


@dataclass(frozen=True)
class Form:
    """What a server calls the id of a question, and whether it is a number."""

    id: str
    is_number: bool


FORMS = {
    "evalai": Form("question_id", True),
    "rrc": Form("questionId", True),
    "vizwiz": Form("image", False),
}


def check_column(column: str, present: Sequence[str], split: str) -> None:
    """Raise a UserError if a split has no column of this name for its server's ids."""
    if column not in present:
        raise UserError(
            f"dataset.submission_id={column}: the {split} split has no column {column!r}"
            f"{closest(column, present) or '.'} Its columns are: {', '.join(sorted(present))}."
        )


def server_ids(form: str, values: Sequence[Any], column: str) -> list[Id]:
    """The ids that the server expects, in the type that it expects; one for each question.

    Raises:
        UserError: one is missing, of another type, or there twice.
    """
    ids = [_server_id(form, value, column, row) for row, value in enumerate(values)]
    twice = [id for id, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(
            f"dataset.submission_id={column}: there more than once: {', '.join(map(repr, twice[:3]))} ({len(twice)} "
            f"in all), and dataset.submission={form} takes one answer for each. Name the column of the server's own "
            "ids, or set dataset.submission=null to write no file for it."
        )
    return ids


def submission(form: str, ids: Sequence[Id], answers: Sequence[str]) -> str:
    """The file's text: JSON in ASCII, a question a line."""
    key = FORMS[form].id
    entries = (json.dumps({key: id, "answer": answer}) for id, answer in zip(ids, answers, strict=True))
    return "[\n" + ",\n".join(entries) + "\n]\n"


def _server_id(form: str, value: Any, column: str, row: int) -> Id:
    text = "" if is_missing(value) else str(value).strip()
    if isinstance(value, float) and value.is_integer():  # of a table program
        text = str(int(value))
    if FORMS[form].is_number and text.isascii() and text.isdecimal():
        return int(text)
    if text and not FORMS[form].is_number:
        return text if Path(text).suffix else f"{text}.jpg"  # the Hub's table has the names without it
    kind = "whole numbers" if FORMS[form].is_number else "the names of images"
    found = f"is {value!r}" if text else "has none"
    raise UserError(
        f"dataset.submission_id={column}: row {row} of the split {found}, and dataset.submission={form} takes {kind}. "
        "Name the column of the server's own ids, or set dataset.submission=null to write no file for it."
    )
