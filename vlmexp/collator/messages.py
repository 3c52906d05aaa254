"""The messages of which a prompt is made, as `collator.messages` has them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from vlmexp.data.example import MEDIA_ROLES
from vlmexp.data.marks import MARK
from vlmexp.errors import UserError, closest

FIELD = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class MessagePart:
    """Text with `{field}` places, or all of an example's images or videos."""

    type: str
    text: str = ""


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
        for name in (name for part in message.parts for name in field_names(part.text)):
            if name not in known:
                raise UserError(
                    f"collator.messages: {{{name}}} is no field of this data set{closest(name, known) or '.'} "
                    f"The fields are: {', '.join(sorted(known))}."
                )


def check_media(messages: Sequence[ChatMessage], system_prompt: str, marks: re.Pattern[str]) -> None:
    """Raise a UserError if an example's media would stand in a prompt more than once, or a mark is no place."""
    parts = [part for message in messages for part in message.parts]
    for medium in MEDIA_ROLES:
        if sum(part.type == medium for part in parts) > 1:
            raise UserError(
                f"collator.messages have {{type: {medium}}} twice: one part shows all {medium}s of an example."
            )
    for option, text in [("system_prompt", system_prompt), *(("messages", part.text) for part in parts)]:
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
