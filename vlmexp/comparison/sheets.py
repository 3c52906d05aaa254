"""Rows of named values as Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vlmexp.files import json_text


@dataclass
class Sheet:
    """A table of plain values: what every format other than the terminal's is made of.

    Attributes:
        summary: single values that belong above the table.
        rows: column -> value; a column that a row lacks is empty there.
    """

    title: str
    rows: Sequence[Mapping[str, Any]]
    summary: Mapping[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows for name in row))


def render(sheet: Sheet, style: str) -> str:
    """The sheet as text.

    Args:
        style: md | csv | json. CSV holds the rows alone, in full precision.
    """
    return {"md": _markdown, "csv": _csv, "json": _json}[style](sheet)


def _markdown(sheet: Sheet) -> str:
    lines = [f"## {sheet.title}", ""]
    lines += [f"- {name}: {_cell(value)}" for name, value in sheet.summary.items()]
    lines += [""] if sheet.summary else []
    if sheet.rows:
        columns = sheet.columns
        lines += [_line(columns), _line("---" for _ in columns)]
        lines += [_line(_cell(row.get(column)) for column in columns) for row in sheet.rows]
        lines += [""]
    lines += [f"- {note}" for note in sheet.notes]
    return "\n".join(lines).rstrip() + "\n"


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    """In a Markdown table: one line, and no sign that would end the cell or start a tag."""
    if value is None:
        return ""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    text = " ".join(text.split())
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _csv(sheet: Sheet) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, sheet.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(sheet.rows)
    return text.getvalue()


def _json(sheet: Sheet) -> str:
    content = {"title": sheet.title, **sheet.summary, "rows": list(sheet.rows), "notes": list(sheet.notes)}
    return json_text(content, indent=2) + "\n"
