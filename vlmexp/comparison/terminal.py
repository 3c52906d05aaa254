"""Sheets in the terminal: long texts are folded, and nothing in them is taken for markup."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmexp.comparison.sheets import Sheet


def print_sheet(console: Console, sheet: Sheet) -> None:
    """Title, single values, rows, notes."""
    console.print(Text(sheet.title, style="bold"))
    width = max(map(len, sheet.summary), default=0)
    for name, value in sheet.summary.items():
        console.print(Text(f"  {name:<{width}}  {_text(value)}"), soft_wrap=True)
    if sheet.rows:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
        for column in sheet.columns:
            table.add_column(column, overflow="fold")
        last: dict[str, Any] = {}
        for row in sheet.rows:
            # The first column says what follows belongs to, once.
            first = sheet.columns[0]
            table.add_row(*("" if c == first and last.get(c) == row[c] else Text(_text(row[c])) for c in sheet.columns))
            last = dict(row)
        console.print(table)
    print_notes(console, sheet.notes)


def print_blocks(console: Console, sheet: Sheet) -> None:
    """A paragraph for each row instead of a line: for texts that are longer than a terminal is wide."""
    console.print(Text(sheet.title, style="bold"))
    for row in sheet.rows:
        console.print()
        for name, value in row.items():
            if value:
                lines = _text(value).splitlines()
                console.print(Text(f"  {name:<10}  " + f"\n{'':14}".join(lines)), soft_wrap=True)


def print_notes(console: Console, notes: Sequence[str]) -> None:
    """One dim line each."""
    for note in notes:
        console.print(Text(note, style="dim"))


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
