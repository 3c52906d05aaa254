"""Conversations of several turns: the forms in which data sets hold them, and the one in which they are stored.

    chat messages   {"role": "user", "content": "what is it?"}, or the content as a list of parts:
                    [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    LLaVA's         {"from": "human", "value": "<image>\\nwhat is it?"}, and `<image>` or `<video>` is a place
                    (https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md)

In any other text of the user's, marks are places where there are as many as media (see vlmexp.data.marks), unless parts
name the places.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmexp.data.example import MEDIA_ROLES, plain_text
from vlmexp.data.marks import split_at_marks
from vlmexp.data.turns import Turn

_SIDES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant"}
_SEAM = "\ue00a"  # a private-use character
_PLACE = re.compile(r"\n*<(image|video)>\n*")


class BadConversation(ValueError):
    """A value that is no conversation to learn from; `reason` is what such rows are counted by."""

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


def read_conversation(value: Any, media: Mapping[str, int], answered: bool = True) -> tuple[Turn, ...]:
    """The turns of a conversation: a system turn if there is one, then user and assistant by turns, the assistant last.

    White space around a turn is left out. Media that have no place of their own stand at the beginning of the user's
    first turn.

    Args:
        value: a list of turns in one of the two forms, or such a list as JSON text.
        media: image or video -> how many the row has.
        answered: without it the user's turn may be the last one, and an empty one of the assistant's is put behind it.

    Raises:
        BadConversation: it is in neither form, its turns are empty or in another order, or it has not as many places
            as there are media.
    """
    turns = [_turn(item, number) for number, item in enumerate(_items(value), start=1)]
    if not answered and turns[-1].role == "user":
        turns.append(Turn("assistant", (("text", ""),)))
    _check_order(turns)
    return _with_media(turns, media)


def _items(value: Any) -> list[Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise BadConversation("no conversation", f"{value[:60]!r} is no list of turns") from None
    if not isinstance(value, list | tuple) or not value:
        raise BadConversation("no conversation", f"{str(value)[:60]} is no list of turns")
    return list(value)


def _turn(item: Any, number: int) -> Turn:
    """One turn in either form, without white space around it."""
    is_chat = isinstance(item, Mapping) and item.get("role") is not None
    if not is_chat and not (isinstance(item, Mapping) and item.get("from") is not None):
        raise BadConversation("no conversation", f'turn {number} has neither a "role" nor a "from": {str(item)[:60]}')
    said = item["role"] if is_chat else item["from"]
    if not isinstance(said, str) or said not in _SIDES:
        raise BadConversation(
            "unknown role", f"turn {number} is that of {str(said)[:60]!r}; there are {', '.join(_SIDES)}"
        )
    role = _SIDES[said]
    content = item.get("content") if is_chat else item.get("value")
    try:
        if isinstance(content, list | tuple):
            parts = [_part(part) for part in content]
        elif is_chat or role != "user":
            parts = [("text", plain_text(content))]
        else:
            parts = _split_at_places(plain_text(content))
    except ValueError as error:
        raise BadConversation("no conversation", f"turn {number}: {error}") from None
    parts = _stripped(parts)
    if not parts:
        raise BadConversation("empty turn", f"turn {number}, the {role}'s, is empty")
    if role != "user" and any(kind != "text" for kind, _ in parts):
        raise BadConversation(
            "no conversation", f"turn {number}, the {role}'s, has a place for media: only a user's may"
        )
    return Turn(role, tuple(parts))


def _part(part: Any) -> tuple[str, str]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in ("text", *MEDIA_ROLES):
        raise ValueError(f"{str(part)[:60]} is no part of type text, {' or '.join(MEDIA_ROLES)}")
    if kind != "text" and (named := next((key for key in (kind, "url", "path") if part.get(key) is not None), None)):
        raise ValueError(
            f"a part names its own {kind} ({str(part[named])[:60]}): put the row's {kind}s into a column, in this order"
        )
    return kind, plain_text(part.get("text")) if kind == "text" else ""


def _split_at_places(text: str) -> list[tuple[str, str]]:
    parts, end = [], 0
    for match in _PLACE.finditer(text):
        parts += [("text", text[end : match.start()]), (match[1], "")]
        end = match.end()
    return [*parts, ("text", text[end:])]


def _stripped(parts: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """The parts without empty texts, and without white space at the beginning and at the end of the turn."""
    kept = [part for part in parts if part[0] != "text" or part[1].strip()]
    if kept:
        kept[0] = (kept[0][0], kept[0][1].lstrip())
        kept[-1] = (kept[-1][0], kept[-1][1].rstrip())
    return kept


def _check_order(turns: Sequence[Turn]) -> None:
    spoken = [turn.role for turn in turns]
    spoken = spoken[1:] if spoken[0] == "system" else spoken
    for number, role in enumerate(spoken):
        expected = ("user", "assistant")[number % 2]
        if role != expected:
            raise BadConversation(
                "turns out of order",
                f"its turns are those of {', '.join(turn.role for turn in turns)}, and user and assistant must take "
                "turns, the user first",
            )
    if len(spoken) % 2 or not spoken:
        raise BadConversation("no answer", f"its last turn is the {turns[-1].role}'s, and nobody answers")


def _with_media(turns: Sequence[Turn], media: Mapping[str, int]) -> tuple[Turn, ...]:
    places = {kind: sum(part[0] == kind for turn in turns for part in turn.parts) for kind in MEDIA_ROLES}
    turns, marked = _at_marks(turns, {kind: count for kind, count in media.items() if not places[kind]})
    unplaced: list[tuple[str, str]] = []
    for kind in reversed(MEDIA_ROLES):  # a video stands before an image
        count = media.get(kind, 0)
        if places[kind] and places[kind] != count:
            raise BadConversation(
                "media without a place" if places[kind] < count else f"no {kind}",
                f"it has places for {places[kind]} {kind}s and the row has {count} (dataset.columns.{kind}, "
                f"collator.data_processing.{kind}_data)",
            )
        unplaced += [(kind, "")] * (count - places[kind] if kind not in marked else 0)
    first = next(number for number, turn in enumerate(turns) if turn.role == "user")
    opening = Turn("user", (*unplaced, *turns[first].parts))
    return (*turns[:first], opening, *turns[first + 1 :])


def _at_marks(turns: Sequence[Turn], media: Mapping[str, int]) -> tuple[list[Turn], set[str]]:
    """The turns divided at the marks in the user's texts, and the media that have their places so."""
    asked = [text for turn in turns if turn.role == "user" for kind, text in turn.parts if kind == "text"]
    parts = split_at_marks(_SEAM.join(asked), media) if _SEAM not in "".join(asked) else ()
    marked = {kind for kind, _ in parts if kind != "text"}
    if not marked:
        return list(turns), marked
    pieces = iter(_divided(parts))

    def divided(turn: Turn) -> Turn:
        parts = [piece for part in turn.parts for piece in (next(pieces) if part[0] == "text" else [part])]
        return Turn(turn.role, tuple(_stripped(parts)))

    return [divided(turn) if turn.role == "user" else turn for turn in turns], marked


def _divided(parts: Sequence[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The parts of each of the texts that a seam has held together."""
    pieces: list[list[tuple[str, str]]] = [[]]
    for kind, text in parts:
        first, *others = text.split(_SEAM)
        pieces[-1].append((kind, first))
        pieces += [[(kind, other)] for other in others]
    return pieces
