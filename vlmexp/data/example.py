"""One question about images and videos, with its accepted answers."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from vlmexp.data.boxes import Box
from vlmexp.data.letters import lettered
from vlmexp.data.marks import Parts, split_at_marks
from vlmexp.data.nested import ABSENT, value_at
from vlmexp.data.turns import Turn, loaded_turns
from vlmexp.errors import UserError, closest

MEDIA_ROLES = ("image", "video")
ANSWER_ROLES = ("answer", "choices")  # lists of texts, and no part of the prompt
BOX = "box"  # the role of a column of boxes, which are the answer
CONVERSATION = "messages"  # the role of a column that holds whole conversations


@dataclass(frozen=True)
class Example:
    """What the collator and the evaluation see of a row.

    Attributes:
        id: unique within the split.
        fields: text by role, for the message template: question, any further role, and the choices with their letters.
        answers: the accepted answers, as many times as they were given; of several people some may have said nothing.
        images: files, in the order in which the prompt shows them unless marks in the question say otherwise.
        metadata: values kept beside the prediction.
        videos: files, in the same order.
        split: where the row comes from, for messages.
        columns: role -> column, for messages.
        target: the answer to train on; None: the most common one.
        choices: the answers to choose from, of which the accepted ones are some.
        turns: the conversation up to where the answer begins, the user's last turn (its question) included; empty where
            the message template makes the conversation.
        boxes: the answer where it is boxes in the one image, in pixels of it as it is shown; `answers` is then their
            text in these pixels, and a model says them in its own notation (see vlmexp.collator.boxes).
        media_limit: longest side in pixels to which images and frames are shrunk, so that the example fits; None: as
            they are.
    """

    id: str
    fields: Mapping[str, str]
    answers: tuple[str, ...]
    images: tuple[Path, ...] = ()
    metadata: Mapping[str, Any] | None = None
    videos: tuple[Path, ...] = ()
    split: str | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    target: str | None = None
    choices: tuple[str, ...] = ()
    turns: tuple[Turn, ...] = ()
    boxes: tuple[Box, ...] = ()
    media_limit: int | None = None

    @functools.cached_property
    def answer(self) -> str:
        """The answer to train on: `target`, or the most common one, the first of them if several are."""
        if self.target is not None:
            return self.target
        said = Counter(answer for answer in self.answers if answer.strip())
        return max(said, key=said.__getitem__) if said else ""

    @functools.cached_property
    def question_parts(self) -> Parts:
        """The question and the media that it has places for."""
        return split_at_marks(self.fields.get("question", ""), {"image": len(self.images), "video": len(self.videos)})

    @property
    def question_end(self) -> str:
        """What may be cut where an example is too long: the question's text behind all media that stand in it."""
        if self.turns:
            return self.turns[-1].last_text
        kind, text = self.question_parts[-1] if self.question_parts else ("text", "")
        return text if kind == "text" else ""

    def with_question_end(self, text: str) -> Example:
        """The example with another text there."""
        if self.turns:
            return dataclasses.replace(self, turns=(*self.turns[:-1], self.turns[-1].with_last_text(text)))
        question = self.fields.get("question", "")
        begin = question[: len(question) - len(self.question_end)]
        return dataclasses.replace(self, fields={**self.fields, "question": begin + text})

    def place(self, *roles: str) -> str:
        """Where the example's media of these roles are from: split, row and columns."""
        split = f"split {self.split}, " if self.split else ""
        columns = " or ".join(column for role in roles if (column := self.columns.get(role)))
        return f"{split}row {self.id}{', column ' * bool(columns)}{columns}"


def check_columns(
    columns: Mapping[str, str | None], metadata: Iterable[str], present: Iterable[str], split: str
) -> None:
    """Raise a UserError if a role or the metadata name a column that the split does not have."""
    present = sorted(set(present))
    options = [(f"dataset.columns.{role}", column) for role, column in columns.items()]
    for option, column in [*options, *(("dataset.metadata", column) for column in metadata)]:
        is_nested = option == "dataset.metadata" and str(column).partition(".")[0] in present
        if column is not None and column not in present and not is_nested:
            raise UserError(
                f"{option}={column}: the {split} split has no column {column!r}"
                f"{closest(column, present) or '.'} Its columns are: {', '.join(present)}."
            )


def to_example(
    row: Mapping[str, Any],
    columns: Mapping[str, str | None],
    metadata: Iterable[str],
    root: Path,
    split: str | None = None,
    answer_seed: int | None = None,
) -> Example:
    """Map a prepared row to an Example; media paths are relative to `root`.

    Args:
        answer_seed: train on an answer drawn by this seed and the row's id; None: on the most common one.
    """
    given: dict[str, Any] = {role: row.get(column) for role, column in columns.items() if column is not None}
    images, videos = (_all_below(root, given.get(role)) for role in MEDIA_ROLES)
    answers, choices = (tuple(answer_texts(given.get(role), keep_empty=role == "answer")) for role in ANSWER_ROLES)
    fields = {role: plain_text(given[role]) for role in text_roles(given)}
    if columns.get("choices"):
        fields["choices"] = lettered(choices)
    turns: list[Turn] = []
    if CONVERSATION in given:
        *turns, last = loaded_turns(given[CONVERSATION])
        fields["question"], answers = turns[-1].text, (last.text,)
    boxes = tuple((left, top, right, bottom) for left, top, right, bottom in given.get(BOX) or ())
    if boxes:
        answers = (json.dumps(boxes),)
    said = [answer for answer in answers if answer.strip()]
    drawn = random.Random(f"{answer_seed}:{row['id']}").choice(said) if said and answer_seed is not None else None
    return Example(
        id=str(row["id"]),
        fields=fields,
        answers=answers,
        images=images,
        metadata={name: None if (value := value_at(row, name)) is ABSENT else value for name in metadata},
        videos=videos,
        split=split,
        columns=columns,
        target=drawn,
        choices=choices,
        turns=tuple(turns),
        boxes=boxes,
    )


def _all_below(root: Path, paths: Sequence[str] | None) -> tuple[Path, ...]:
    return tuple([_below(root, path) for path in paths]) if paths else ()


@functools.lru_cache(2048)
def _below(root: Path, path: str) -> Path:
    """A file of several rows, most often in a row: a path takes its time to be made."""
    return root / path


def prompt_fields(columns: Mapping[str, str | None]) -> list[str]:
    """The fields of a prompt: the roles that hold a text, and the choices with their letters."""
    return [*text_roles(columns), *(["choices"] if columns.get("choices") else [])]


def text_roles(columns: Iterable[str]) -> list[str]:
    """The roles whose columns hold a text for the message template."""
    return [role for role in columns if role not in (*ANSWER_ROLES, BOX, CONVERSATION, *MEDIA_ROLES)]


def answer_texts(value: Any, keep_empty: bool = False) -> list[str]:
    """The accepted answers in a value: text, number, `{"answer": ...}`, `{"text": [...]}` (SQuAD's), or a list of such.

    Empty ones are left out, or with `keep_empty` only where all are: of ten people one may have said nothing, and is
    one of the ten all the same.

    >>> answer_texts([{"answer": "yes", "answer_id": 1}, 3, ""]), answer_texts({"text": ["a"], "answer_start": [0]})
    (['yes', '3'], ['a'])
    """
    texts = _plain_answers(value)
    if texts is None:
        texts = [plain_text(item) for each in _items(value) for item in _items(_said(each))]
    said = [text for text in texts if text.strip()]
    return texts if said and keep_empty else said


def _plain_answers(value: Any) -> list[str] | None:
    """The texts in a list of texts or objects in the plainest form, as most are; None for any other."""
    if type(value) is not list:
        return [] if value is None else None
    texts = [item if type(item) is str else item.get("answer") if type(item) is dict else None for item in value]
    try:
        return texts if "".join(texts).isascii() else None  # type: ignore[arg-type, return-value]
    except TypeError:  # not all are texts
        return None


def _items(value: Any) -> Sequence[Any]:
    value = value.tolist() if isinstance(value, np.ndarray) else value
    return value if isinstance(value, list | tuple) else [value]


def _said(value: Any) -> Any:
    """What an answer's object says; of a list in a list nothing is known."""
    if isinstance(value, dict):
        return next((value[name] for name in ("answer", "text") if name in value), value)
    return plain_text(value)


def plain_text(value: Any) -> str:
    """A text or number as text, nothing as an empty one.

    Raises:
        ValueError: a list or something else that has no obvious text.
    """
    if is_missing(value):
        return ""
    if type(value) is not str and isinstance(value, list | tuple | set | frozenset | dict | bytes | np.ndarray):
        raise ValueError(f"{str(value)[:60]} is a {type(value).__name__} and no text")
    text = str(value)
    if not text.isascii() and text != text.encode(errors="replace").decode():
        raise ValueError("it holds half of a character (an unpaired surrogate)")
    return text


def is_missing(value: Any) -> bool:
    """Whether a value is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))
