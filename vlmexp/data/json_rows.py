"""The rows of a JSON file, one at a time: in memory is a row and not the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from vlmexp.data.row_shape import MOST_CHARACTERS, MOST_VALUES

_BLOCK = 2**20  # characters read at a time
_SPACE = re.compile(r"[ \t\n\r]*")
_TO_OBJECT = re.compile(r",[ \t\n\r]*(?={)")
_decode = json.JSONDecoder().raw_decode


def require_few_values(text: str, place: str) -> None:
    """Raise a ValueError for a text of JSON that would become more values than a row may have."""
    if len(text) > _BLOCK and text.count(",") + text.count("[") + text.count("{") > MOST_VALUES:
        raise ValueError(f"{place} has more than {MOST_VALUES:,} values")


def parsed(text: str, place: str) -> Any:
    """The value of a text of JSON; raises ValueError."""
    require_few_values(text, place)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(_said(error, place, 0)) from None


def json_rows(file: TextIO) -> Iterator[tuple[int, Any]]:
    """Number and value of each row: of a list, of the one list of objects in an object, or the only value.

    Raises:
        ValueError: it is no JSON, has several lists of objects, or a row is too large.
    """
    stream = _Stream(file)
    start = stream.next()
    if start == "[":
        yield from stream.items()
    elif start == "{":
        yield from _in_object(stream)
    else:
        yield 0, stream.value("it")
    if stream.next():
        raise ValueError(f"it is no JSON: Extra data at character {stream.place}")


def listed(file: TextIO, name: str) -> Iterator[Any]:
    """The values of the list that the file's object holds under a name.

    Raises:
        ValueError: it is no JSON, or a value is too large.
        KeyError, TypeError: there is no such list.
    """
    stream, lists = _Stream(file), 0
    if stream.next() != "{":
        raise TypeError(f"it is a {type(stream.value('it')).__name__} and no object")
    for key in stream.names():
        if key != name:
            stream.value(f"its {key}")
            continue
        lists += 1
        if stream.next() != "[":
            raise TypeError(f"its {name} are a {type(stream.value(f'its {name}')).__name__} and no list")
        if lists > 1:
            raise ValueError(f"it has {name} twice")
        for _, value in stream.items():
            yield value
    if stream.next():
        raise ValueError(f"it is no JSON: Extra data at character {stream.place}")
    if not lists:
        raise KeyError(name)


def _in_object(stream: _Stream) -> Iterator[tuple[int, Any]]:
    single, lists = dict[str, Any](), 0
    before = stream.place
    for name in stream.names():
        if stream.starts_with_objects():
            lists += 1
            if lists > 1:
                raise ValueError("it is an object with 2 lists of rows, or more, and one is needed")
            yield from stream.items()
            before = stream.place
        else:
            single[name] = stream.value("it")
            if stream.place - before > MOST_CHARACTERS:
                raise ValueError(f"it has more than {MOST_CHARACTERS:,} characters beside its rows")
    if not lists:
        yield 0, single


class _Stream:
    """Reads a file of JSON value by value.

    Attributes:
        place: characters in front of what is read next.
    """

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at, self._gone, self._has_ended = file, "", 0, 0, False

    @property
    def place(self) -> int:
        return self._gone + self._at

    def next(self) -> str:
        """The next character that is no space, which stays; nothing at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            assert match is not None
            self._at = match.end()
            if self._at < len(self._text) or not self._more():
                return self._text[self._at : self._at + 1]

    def items(self) -> Iterator[tuple[int, Any]]:
        """The values of a list, with their numbers."""
        self._expect("[", "it")
        number = 0
        while self.next() != "]" or number:
            yield number, self.value(f"row {number}")
            number += 1
            for value in self._objects():
                yield number, value
                number += 1
            if self.next() == "]":
                break
            self._expect(",", f"row {number}")
        self._expect("]", "it")

    def _objects(self) -> Iterator[dict[str, Any]]:
        """The objects behind commas that are whole in what has been read: nearly all of a list are, and cost less."""
        text = self._text
        while match := _TO_OBJECT.match(text, self._at):
            try:
                value, end = _decode(text, match.end())
            except (ValueError, RecursionError):  # cut off, or what `value` has words for
                return
            self._at = end
            yield value

    def names(self) -> Iterator[str]:
        """The names in an object; what belongs to one has to be read before the next."""
        self._expect("{", "it")
        is_first = True
        while self.next() != "}" or not is_first:
            name = self.value("it")
            if not isinstance(name, str):
                raise ValueError(f"it is no JSON: a name should be at character {self.place}")
            self._expect(":", "it")
            self.next()
            yield name
            is_first = False
            if self.next() == "}":
                break
            self._expect(",", "it")
        self._expect("}", "it")

    def starts_with_objects(self) -> bool:
        """Whether next is a list with an object at its beginning."""
        if self.next() != "[":
            return False
        while not (found := re.compile(r"\[[ \t\n\r]*(\S)").match(self._text, self._at)):
            if not self._more():
                return False
        return found[1] == "{"

    def value(self, place: str) -> Any:
        """The next value."""
        self.next()
        while True:
            try:
                value, end = _decode(self._text, self._at)
                if end < len(self._text) or not self._more():
                    break
            except (ValueError, RecursionError) as error:  # it may only be cut off
                if isinstance(error, RecursionError) or not self._more():
                    raise ValueError(_said(error, place, self._gone)) from None
            rest = len(self._text) - self._at
            if rest > MOST_CHARACTERS:
                raise ValueError(f"{place} has more than {MOST_CHARACTERS:,} characters, or is no JSON") from None
            if rest > 2 * _BLOCK:
                require_few_values(self._text[self._at :], place)
        self._at = end
        if self._at > _BLOCK:
            self._text, self._gone, self._at = self._text[self._at :], self._gone + self._at, 0
        return value

    def _expect(self, character: str, place: str) -> None:
        if self.next() != character:
            raise ValueError(f"{place} is no JSON: {character!r} should be at character {self.place}")
        self._at += 1

    def _more(self) -> bool:
        """Read on, as much again as there is; whether there was something."""
        if self._has_ended:
            return False
        block = self._file.read(max(_BLOCK, len(self._text) - self._at))
        self._text, self._gone, self._at = self._text[self._at :] + block, self._gone + self._at, 0
        self._has_ended = not block
        return bool(block)


def _said(error: Exception, place: str, before: int) -> str:
    if isinstance(error, RecursionError):
        return f"{place} is nested too deeply"
    if isinstance(error, json.JSONDecodeError):
        return f"{place} is no JSON: {error.msg} at character {before + error.pos}"
    return f"{place} has a number that is too long: {str(error).partition(';')[0].partition(':')[0]}"
