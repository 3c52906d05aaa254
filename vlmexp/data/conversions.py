"""Values that are not what they were before a table program wrote them, and back again.

What can be read in one way only is converted value by value: booleans and lists of choices. For the rest a whole column
is looked at first, in all splits, so that a plain text such as "[redacted]", or "1.0" among versions, stays what it is:

    lists           a text that is the writing of a list, where half of the column's texts or more are
    whole numbers   3.0 in a column of whole numbers that are all written so, because one is missing
    choices         a number that is the index (from 0) of a choice in every row, and itself no choice in most of them
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vlmexp.data.example import ANSWER_ROLES, answer_texts, is_missing, text_roles
from vlmexp.data.literals import is_answers, parsed

_WHOLE = re.compile(r"-?\d+(?:\.0|(?:\.\d+)?e\+\d+)")  # as Python writes a float that is a whole number
_INTEGER = re.compile(r"-?\d+")
_KINDS = {
    "choices": "values of the column {!r} are read as lists of choices",
    "booleans": "booleans of the column {!r} are answers",
    "lists": "texts of the column {!r} are lists of answers",
    "whole numbers": "values of the column {!r} are whole numbers that a missing one had made floats",
    "indices": "answers of the column {!r} are numbers of their choices",
}


class ColumnForms:
    """In which forms the values of a column come.

    Attributes:
        counts: how many values are of a form; `texts`, `floats` and so on, and `missing`.
        lists: split -> how many texts are the writing of accepted answers.
        values: split -> how many values there are.
    """

    def __init__(self) -> None:
        self.counts, self.lists, self.values = Counter[str](), Counter[str](), Counter[str]()

    def add(self, value: Any, split: str) -> None:
        """Count a value."""
        if is_missing(value) or value == "":
            self.counts["missing"] += 1
            return
        self.values[split] += 1
        for item in value if isinstance(value, (list, tuple)) else (value,):
            if type(item) is not dict:  # of which nothing is counted
                self._count(item, split)

    def _count(self, value: Any, split: str) -> None:
        if isinstance(value, float) and not is_missing(value):
            self.counts["whole floats" if value.is_integer() else "other floats"] += 1
        elif isinstance(value, str):
            self.counts["texts"] += 1
            found = parsed(value)
            if is_answers(found):
                self.lists[split] += 1
            elif isinstance(found, list) and found:
                self.counts["other lists"] += 1
            elif _WHOLE.fullmatch(value):
                self.counts["whole texts"] += 1
            elif _INTEGER.fullmatch(value):
                self.counts["integer texts"] += 1

    @property
    def has_lists(self) -> bool:
        """Whether the texts of one of the splits are mostly the writing of answers."""
        return any(2 * count >= self.values[split] for split, count in self.lists.items())

    @property
    def has_whole_numbers(self) -> bool:
        """Whether every `3.0` is a whole number that became a float."""
        count = self.counts
        if count["whole floats"]:
            return not count["other floats"] and not count["whole texts"]
        numbers = count["whole texts"] + count["integer texts"]
        return bool(count["whole texts"] and count["missing"]) and numbers == count["texts"]


class ChoiceForms:
    """Whether the answers to questions with choices are their numbers.

    Attributes:
        rows: that have choices and answers.
        numbers, indices, among: rows whose answers are whole numbers, numbers of their choices, and texts of them.
    """

    def __init__(self) -> None:
        self.rows = self.numbers = self.indices = self.among = 0

    def add(self, answers: Sequence[str], choices: Sequence[str]) -> None:
        """Count a row."""
        if choices and answers:
            numbers = [_number(text) for text in answers]
            self.rows += 1
            self.numbers += None not in numbers
            self.indices += all(number is not None and 0 <= number < len(choices) for number in numbers)
            said = zip(answers, numbers, strict=True)
            self.among += all(text in choices or str(number) in choices for text, number in said)

    @property
    def fit(self) -> bool:
        """Whether all answers can be numbers of choices."""
        return 0 < self.rows == self.indices

    @property
    def are_indices(self) -> bool:
        """Whether they are numbers of choices in every row, and texts of choices in no more than half of them."""
        return self.fit and 2 * self.among <= self.rows


class Conversions:
    """Watches the rows of all splits, and then changes what is stored of them.

    Args:
        columns: role -> column.
        mode: `auto`; `always`, which takes every text that can be read as a list or whole number for one, and every
            number in the range of the choices for an index; or `never`.
    """

    def __init__(self, columns: Mapping[str, str | None], mode: str) -> None:
        self._mode = mode
        self._answer, choices = (columns.get(role) for role in ANSWER_ROLES)
        self._choices = choices if choices != self._answer else None
        named = {role: column for role, column in columns.items() if column}
        self._texts = list(dict.fromkeys(named[role] for role in text_roles(named)))
        self._forms = {column: ColumnForms() for column in (self._answer, *self._texts) if column}
        self._chosen = ChoiceForms()
        # kind and column -> how many, and the first before and after
        self._changed = dict[tuple[str, str], tuple[int, Any, Any]]()

    def read(self, row: Mapping[str, Any], split: str) -> dict[str, Any]:
        """A row of a source with what can be converted by itself; the forms of the rest are counted."""
        found, choices = dict(row), list[str]()
        if self._mode == "never":
            return found
        if self._choices and row.get(self._choices) is not None:
            found[self._choices] = self._list(row[self._choices])
            choices = _texts(found[self._choices])
        if self._answer and row.get(self._answer) is not None:
            found[self._answer] = self._said(row[self._answer], choices)
            if choices:
                self._chosen.add(_texts(found[self._answer]), choices)
        for column, forms in self._forms.items():
            forms.add(found.get(column), split)
        return found

    @property
    def columns(self) -> list[str]:
        """The columns of stored rows that `change` has to see; empty: it would change nothing."""
        changing = self._has_lists or self._are_indices or any(map(self._has_whole_numbers, self._forms))
        return [column for column in (self._answer, self._choices, *self._texts) if column] if changing else []

    def change(self, row: dict[str, Any]) -> dict[str, Any]:
        """A stored row's values in these columns, converted."""
        for column in self._texts:
            if row.get(column) and self._has_whole_numbers(column):
                row[column] = self._whole(column, row[column])
        answers = row.get(self._answer) if self._answer else None
        if answers and self._answer:
            if self._has_lists and len(answers) == 1:
                answers = self._items(answers[0])
            if self._has_whole_numbers(self._answer):
                answers = [self._whole(self._answer, text) for text in answers]
            if self._are_indices and self._choices and (choices := row.get(self._choices)):
                answers = [self._choice(text, choices) for text in answers]
            row[self._answer] = answers
        return row

    def sentences(self) -> list[str]:
        """What was changed, by column and kind with an example, and what was not although it might be meant."""
        found = [
            f"{count:,} {_KINDS[kind].format(column)}, for example {_short(before)} became {_short(after)}; "
            "dataset.convert=never leaves them as they are."
            for (kind, column), (count, before, after) in self._changed.items()
        ]
        return found + ([*self._left()] if self._mode == "auto" and self._answer else [])

    def _left(self) -> Iterator[str]:
        chosen, forms = self._chosen, self._forms[self._answer or ""]
        count, values = forms.counts, forms.values.total()
        reads = "dataset.convert=always reads them so, and never leaves this out."
        lists = count["other lists"] + (0 if self._has_lists else forms.lists.total())
        if lists:
            yield f"{lists:,} of {values:,} values of the column {self._answer!r} are like lists but stay so; {reads}"
        if count["whole texts"] == count["texts"] > 0 and not forms.has_whole_numbers:
            yield f"The texts of the column {self._answer!r} are all like '3.0' and stay so, not whole numbers; {reads}"
        if chosen.fit and not chosen.are_indices:
            yield f"The answers of the column {self._answer!r} are choices and not taken for their numbers; {reads}"
        elif 0 < chosen.rows == chosen.numbers and not chosen.among and not chosen.fit:
            yield (
                f"The answers of the column {self._answer!r} are numbers, and neither choices nor their numbers from 0 "
                "on: they stay as they are."
            )

    @property
    def _has_lists(self) -> bool:
        if not self._answer or self._mode == "never":
            return False
        forms = self._forms[self._answer]
        return forms.has_lists or (self._mode == "always" and bool(forms.lists or forms.counts["other lists"]))

    def _has_whole_numbers(self, column: str) -> bool:
        forms = self._forms[column]
        always = self._mode == "always" and bool(forms.counts["whole texts"] or forms.counts["whole floats"])
        return self._mode != "never" and (forms.has_whole_numbers or always)

    @property
    def _are_indices(self) -> bool:
        chosen = self._chosen
        return chosen.are_indices or (self._mode == "always" and chosen.fit)

    def _list(self, value: Any) -> Any:
        """A list of choices that is written as text, or an object of them by letter, as a list."""
        found = parsed(value) if isinstance(value, str) else value
        if isinstance(found, dict) and not found.keys() & {"text", "answer"}:
            found = list(found.values())
        if not isinstance(found, list | dict) or found == value:
            return value
        return self._record("choices", self._choices, value, found)

    def _said(self, value: Any, choices: Sequence[str]) -> Any:
        """Yes or no for a boolean, or the choice that says it."""
        if isinstance(value, list):
            if not any(issubclass(kind, (bool, list)) for kind in set(map(type, value))):
                return value
            return [self._said(item, choices) for item in value]
        if not isinstance(value, bool):
            return value
        written = (choice for choice in choices if choice.casefold() == str(value).casefold())
        return self._record("booleans", self._answer, value, next(written, "yes" if value else "no"))

    def _items(self, text: str) -> list[str]:
        found = parsed(text)
        always = self._mode == "always" and isinstance(found, list)
        if not (is_answers(found) or found == [] or always):
            return [text]
        return self._record("lists", self._answer, text, _texts(found))  # type: ignore[no-any-return]

    def _whole(self, column: str, text: str) -> str:
        number = _number(text)
        if number is None or _INTEGER.fullmatch(text):
            return text
        return self._record("whole numbers", column, text, str(number))  # type: ignore[no-any-return]

    def _choice(self, text: str, choices: Sequence[str]) -> str:
        number = _number(text)
        if number is None or not 0 <= number < len(choices):
            return text
        return self._record("indices", self._answer, text, choices[number])  # type: ignore[no-any-return]

    def _record(self, kind: str, column: str | None, before: Any, after: Any) -> Any:
        """Count a change and return what came of it."""
        count, *first = self._changed.get((kind, column or ""), (0, before, after))
        self._changed[kind, column or ""] = (count + 1, first[0], first[1])
        return after


def _number(text: str) -> int | None:
    """The whole number that a text is, also as `3.0` or `1e+16`; None: it is none."""
    try:
        if _INTEGER.fullmatch(text):
            return int(text)
        return int(float(text)) if _WHOLE.fullmatch(text) else None
    except (ValueError, OverflowError):  # of more digits than Python reads
        return None


def _texts(value: Any) -> list[str]:
    """The texts in a value; none where it is of a form that answers do not have."""
    try:
        return answer_texts(value)
    except ValueError:
        return []


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
