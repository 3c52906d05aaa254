"""What is said in a conversation, turn by turn, and how a table holds it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Turn:
    """What one side says.

    Attributes:
        role: system, user or assistant.
        parts: (type, text) of its pieces in order: a text, or an image or video, whose text is its number among the
            example's images or videos, from 1 on, or empty where they come in their order.
    """

    role: str
    parts: tuple[tuple[str, str], ...]

    @property
    def text(self) -> str:
        """All that is said, without the media."""
        return "".join(text for _, text in self.parts)

    @property
    def last_text(self) -> str:
        """The text behind all media; empty without one."""
        kind, text = self.parts[-1]
        return text if kind == "text" else ""

    def with_last_text(self, text: str) -> Turn:
        """The turn with another text behind all media."""
        parts = self.parts[:-1] if self.parts[-1][0] == "text" else self.parts
        return dataclasses.replace(self, parts=(*parts, ("text", text)))


def stored_turns(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """The turns as a value of a table's row; all have the same keys."""
    return [{"role": t.role, "parts": [{"type": kind, "text": text} for kind, text in t.parts]} for t in turns]


def loaded_turns(value: Iterable[Mapping[str, Any]]) -> tuple[Turn, ...]:
    """What `stored_turns` made, as turns again."""
    return tuple(Turn(t["role"], tuple((part["type"], part["text"]) for part in t["parts"])) for t in value)
