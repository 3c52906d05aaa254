"""Tables and styled text on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.segment import Segment

from vlmexp.terminal import visible


class Screen(Console):
    """A console whose styles reach the terminal, and of what it is given to print nothing but text."""

    def __init__(self, **options: Any) -> None:
        options.setdefault("file", getattr(sys.stdout, "styled", None))
        super().__init__(markup=False, emoji=False, **options)

    def _render_buffer(self, buffer: Iterable[Segment]) -> str:
        return super()._render_buffer(map(_plain, buffer))


def _plain(segment: Segment) -> Segment:
    """Only rich itself makes segments that control a terminal; a style with a link would hide where it leads."""
    text, style, control = segment
    if control:
        return segment
    return Segment(visible(text), style.update_link(None) if style and style.link else style)
