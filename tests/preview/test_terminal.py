"""The preview in terminals of all kinds."""

from __future__ import annotations

import io
import re
from collections import Counter

import pytest
from rich.console import Console

from tests.conftest import example
from vlmexp.preview.cards import Card, Question, Segment
from vlmexp.preview.summary import Preview, numbers, policy
from vlmexp.preview.survey import Survey
from vlmexp.preview.terminal import print_preview
from vlmexp.preview.tokens import Piece

EVIL = "red \x1b[31m\x07[bold]\u202ewhite 漢字 🦊"


@pytest.fixture
def shown():
    pieces = [
        Piece(1, "<user>", "masked"), Piece(2, "<img>", "media", 300), Piece(3, EVIL, "masked"),
        Piece(4, "yes", "trained"), Piece(5, "<end>", "trained"), Piece(0, "<pad>", "padding", 7),
    ]  # fmt: skip
    counts = {"masked": 2, "media": 300, "trained": 2, "padding": 7}
    survey = Survey([0, 1, 2], ["a", "b", "c"], [304, 310, 900], [300, 300, 600], Counter({(640, 480): 2}), 0, [])
    card = Card([Question(example("q?", "yes", id="a"), 304)], [], [Segment("", pieces)], counts)
    broken = Card([Question(example("q?", "no", id="b"), 0)], problem=f"cannot be read: {EVIL}")
    return Preview("m on d", {}, 10, survey, [card, broken], 512, "drop", "", ["row x is empty"], "")


class Terminal(io.TextIOWrapper):
    """Output in an encoding, which fails for a character that the encoding lacks."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, write_through=True)

    def text(self) -> str:
        return self.buffer.getvalue().decode(self.encoding)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", "latin-1"])
@pytest.mark.parametrize("width", [20, 40, 160])
def test_every_width_and_encoding(encoding, width, shown):
    terminal = Terminal(encoding)
    print_preview(Console(file=terminal, width=width, highlight=False), shown)
    text = terminal.text()
    joined = "".join(text.split())
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\u202e" not in text
    assert r"\x1b[31m\x07[bold]\u202ewhite" in joined
    assert "{+yes<end>+}<pad>x7" in joined
    assert "<img>x300" in joined
    assert ("漢字" in text) == (encoding == "utf-8")
    assert max(map(len, text.splitlines())) <= width


def test_colours_where_there_are_colours(shown):
    terminal = Terminal("utf-8")
    print_preview(Console(file=terminal, force_terminal=True, color_system="standard", width=100), shown)
    text = terminal.text()
    assert "\x1b[1;32myes<end>" in text.replace("\x1b[0m\x1b[1;32m", "")
    assert "\x1b[36m <img> x 300 " in text
    assert "{+" not in text


def test_no_color_is_respected(shown, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    terminal = Terminal("utf-8")
    print_preview(Console(file=terminal, force_terminal=True, width=100), shown)
    assert not re.search(r"\x1b\[(\d+;)*[34]\d", terminal.text())  # bold there may be
    assert "{+yes<end>+}" in re.sub(r"\x1b\[[\d;]*m", "", terminal.text())


def test_the_numbers(shown):
    assert numbers(shown) == {
        "examples": ("3", "counted, of 10"),
        "tokens each": ("504.7", "304 to 900"),
        "media add": ("79.3 %", "400.0 tokens an example"),
        "too long": ("1", "33.3 % above max_length=512"),
        "trained": ("0.7 %", "2 of 304 tokens below, where 300 are media"),
    }
    assert policy(shown) == (
        "1 of 3 counted examples is longer than collator.max_length=512; with collator.overlong=drop they are left out "
        "of the training."
    )
