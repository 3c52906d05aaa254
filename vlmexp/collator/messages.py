"""The messages of which a prompt is made, as `collator.messages` has them."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from dataclasses import dataclass

from vlmexp.data.example import MEDIA_ROLES
from vlmexp.data.marks import MARK
from vlmexp.errors import UserError, closest

PROMPT = "{prompt}"  # the place of a data set's own prompt
FIELD = re.compile(r"\{(\w+)\}")
_HALF = re.compile(r"\{\w+\b(?!\})|(?<!\{)\b\w+\}")  # a field with one of its braces


@dataclass(frozen=True)
class MessagePart:
    """Text with `{field}` places, or all of an example's images or videos.

    Attributes:
        pieces: the text in pieces, if it shows of them only those whose fields an example has; empty: all of it.
    """

    type: str
    text: str = ""
    pieces: tuple[str, ...] = ()

    def shown(self, absent: Set[str]) -> str:
        """The text of an example without these fields."""
        if not self.pieces:
            return self.text
        there = [piece for piece in self.pieces if absent.isdisjoint(field_names(piece))]
        return "".join(there).lstrip("\n")


def message_part(kind: str, text: str, prompt: Sequence[str]) -> MessagePart:
    """A part as the config has it, with a data set's prompt in the place of `{prompt}`."""
    before, place, after = text.partition(PROMPT)
    if not place:
        return MessagePart(kind, text)
    pieces = (before, *prompt, after)
    return MessagePart(kind, "".join(pieces), pieces)


@dataclass(frozen=True)
class ChatMessage:
    """What a role says; the role `conversation` stands for all turns of an example's own conversation."""

    role: str
    parts: tuple[MessagePart, ...]


def field_names(text: str) -> list[str]:
    """The fields that a text names."""
    return [role(name) for name in FIELD.findall(text)]


def role(name: str) -> str:
    """`{question}` and `{question_column}` are the same field."""
    return name.removesuffix("_column")


def check_fields(messages: Sequence[ChatMessage], roles: Sequence[str]) -> None:
    """Raise a UserError if a message names a field that there is not, or the prompt the answer."""
    for message in messages:
        # The prompt must not hold what it asks for.
        known = [*roles, "system_prompt", *(["answer"] if message is messages[-1] else [])]
        for part in message.parts:
            option = "dataset.prompt" if part.pieces else "collator.messages"
            for half in _HALF.findall(part.text):
                if half.strip("{}") in known:
                    raise UserError(f"{option}: {half} has one brace: write {{{half.strip('{}')}}}.")
            for name in field_names(part.text):
                if name not in known:
                    raise UserError(
                        f"{option}: {{{name}}} is no field of this "
                        f"data set{closest(name, known) or '.'} The fields are: {', '.join(sorted(known))}."
                    )


def check_media(messages: Sequence[ChatMessage], instructions: Sequence[str], marks: re.Pattern[str]) -> None:
    """Raise a UserError if an example's media would stand in a prompt more than once, or a mark is no place."""
    parts = [part for message in messages for part in message.parts]
    for medium in MEDIA_ROLES:
        if sum(part.type == medium for part in parts) > 1:
            raise UserError(
                f"collator.messages have {{type: {medium}}} twice: one part shows all {medium}s of an example."
            )
    texts = [("messages", part.text) for part in parts]
    for option, text in [*(("system_prompt", text) for text in instructions), *texts]:
        if (match := marks.search(text)) and match[0]:
            raise UserError(
                f"collator.{option}: {text[:60]!r} holds {match[0]}, which this model's processor takes for an "
                "image or a video: write a part {type: image} or {type: video} instead."
            )
        if match := MARK.search(text):
            raise UserError(
                f"collator.{option}: {text[:60]!r} holds {match[0]}, and only marks in a question are places of media: "
                "write a part {type: image} or {type: video} in collator.messages instead."
            )
