"""What a benchmark's table has to become before its columns are a question, choices, answers and media."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from vlmexp.data.letters import letter, lettered
from vlmexp.data.literals import parsed
from vlmexp.errors import UserError, unknown

Row = dict[str, Any]
Rows = Iterable[Row]

WITHOUT, EMPTY = "without ", "empty "  # before a text that an edit takes away, anywhere or where it is all there is
_EDITS: dict[str, Callable[[str], str]] = {"strip": str.strip, "capitalize": str.capitalize}
_NOTHING = (None, "", "nan")  # what tables write where a row has fewer choices or images than others


def shaped(
    rows: Iterable[Row],
    where: Mapping[str, Any] | None = None,
    gathered: Mapping[str, Sequence[str]] | None = None,
    edits: Mapping[str, Sequence[str]] | None = None,
    each: str | None = None,
    choices: Mapping[str, str] | None = None,
) -> Iterator[Row]:
    """The rows with these changes, in this order.

    Args:
        where: column -> the value that it has in the rows that are kept, or a list of such, compared as texts.
        gathered: column to add -> the columns whose values it lists, empty ones left out: `{options: [A, B, C, D]}`.
        edits: column -> what is done to its text: `strip`, `capitalize` (which makes all other letters small, as
            Python's does), `without TEXT`, which takes it away, or `empty TEXT`, if that is all.
        each: a column of lists, whose items each make a row.
        choices: the columns `{question, choices, answer}` of questions with a list of choices, or the text of one, and
            the right one's letter, or its number counted from 0. Rows get two more columns: `question_and_choices`,
            the question with a line for each choice, and `letter`, the right one's. Letters that the choices bear
            already (`A. red`) are theirs no more. Without choices the question and the answer stay as they are.

    Raises:
        UserError: an edit that there is not, or `where` names a column that there is not.
    """
    for column, names in (edits or {}).items():
        for name in names:
            if name not in _EDITS and not name.startswith((WITHOUT, EMPTY)):
                known = [*_EDITS, WITHOUT + "TEXT", EMPTY + "TEXT"]
                raise unknown(f"dataset.options.edits.{column}", name, known)
    return (
        _lettered(new, **choices) if choices else new
        for row in rows
        if _is_kept(row, where or {})
        for new in _each(_edited(_gathered(row, gathered or {}), edits or {}), each)
    )


def joined(rows: Iterable[Row], other: Iterable[Row], left: str, right: str, columns: Sequence[str]) -> Iterator[Row]:
    """The rows with columns of another table, of the row whose `right` equals their own `left`.

    Raises:
        UserError: a row has no partner.
    """
    partners = {row[right]: {column: row[column] for column in columns} for row in other}
    for row in rows:
        if row[left] not in partners:
            raise UserError(f"dataset.options.join: no row of the other table has {right}={row[left]!r}.")
        yield row | partners[row[left]]


def _is_kept(row: Row, where: Mapping[str, Any]) -> bool:
    for column, wanted in where.items():
        if column not in row:
            raise unknown("dataset.options.where", column, row)
        values = wanted if isinstance(wanted, Sequence) and not isinstance(wanted, str) else [wanted]
        if str(row[column]) not in map(str, values):
            return False
    return True


def _gathered(row: Row, gathered: Mapping[str, Sequence[str]]) -> Row:
    lists = {name: [row[c] for c in columns if row.get(c) not in _NOTHING] for name, columns in gathered.items()}
    return {**row, **lists}


def _edited(row: Row, edits: Mapping[str, Sequence[str]]) -> Row:
    return row | {column: _edit(row[column], names) for column, names in edits.items() if row.get(column) is not None}


def _edit(text: str, names: Sequence[str]) -> str:
    for name in names:
        if name in _EDITS:
            text = _EDITS[name](text)
        elif name.startswith(WITHOUT):
            text = text.replace(name.removeprefix(WITHOUT), "")
        else:
            text = "" if text == name.removeprefix(EMPTY) else text
    return text


def _each(row: Row, column: str | None) -> list[Row]:
    return [row] if column is None else [row | {column: item} for item in row[column]]


def _lettered(row: Row, question: str, choices: str, answer: str) -> Row:
    given = row[choices]
    texts = (parsed(given) or []) if isinstance(given, str) else list(given or [])
    if not texts:
        return row | {choices: [], "question_and_choices": row[question], "letter": row[answer]}
    if all(re.match(rf"\(?{letter(number)}[.):] ", str(text)) for number, text in enumerate(texts)):
        texts = [str(text).partition(" ")[2] for text in texts]
    lines = f"{row[question]}\n{lettered(texts)}"
    return row | {choices: texts, "question_and_choices": lines, "letter": _letter(row[answer], len(texts))}


def _letter(answer: Any, count: int) -> str | None:
    """The letter of a number, of a number's text, or of a letter; None if there is no such choice."""
    letters = [letter(number) for number in range(count)]
    if answer in letters:
        return str(answer)
    number = int(answer) if isinstance(answer, int) or str(answer).isdecimal() else -1
    return letters[number] if 0 <= number < count else None
