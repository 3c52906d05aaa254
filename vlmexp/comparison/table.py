"""The leaderboard: as a table that fits the terminal, and in full for files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from vlmexp.comparison.rows import Row, Score, about_intervals, about_ranks, in_percent, plain, short_options
from vlmexp.comparison.sheets import Sheet
from vlmexp.report import LABELS, MEAN_RANK, NONE

WIDEST = 24  # columns of the terminal that a value of an option may take
HEADING_WIDTH = 12
ERROR_WIDTH = 24  # of what stands in place of a score
NOTE_WIDTH = 18  # the least that a note needs to say something
# What a column is worth where not all have a place; SAME are options that change together with one that is shown.
ALWAYS, OPTION, SUITE, N, GAIN, TIME, RATE, MEMORY, NOTE, SAME, OTHER = range(11)
STYLES = {"done": "green", "running": "cyan", "pending": "dim", "preempted": "yellow"}  # others: red


@dataclass(frozen=True)
class Column:
    """A column of the terminal's table; the least important ones are left out where it is too narrow."""

    title: str
    cells: list[str]
    importance: int  # ALWAYS … OTHER
    justify: Any = "right"

    @property
    def width(self) -> int:
        return max(map(cell_len, [*self.heading.split("\n"), *self.cells]))

    @property
    def heading(self) -> str:
        """The title in lines of moderate length, broken behind underscores, dots and slashes."""
        lines = [""]
        for word in re.findall(r"[^_./]*[_./]|[^_./]+", self.title):
            if lines[-1] and len(lines[-1]) + len(word) > HEADING_WIDTH:
                lines.append("")
            lines[-1] += word
        return "\n".join(lines)


def print_leaderboard(
    console: Console, rows: Sequence[Row], options: Sequence[str], metric: str | None, title: str
) -> None:
    """Print one line a run in the console's width; what had no place is named below the table."""
    columns = leaderboard(rows, options, metric)
    shown, left_out = fit(columns, console.width)
    table = Table(
        title=Text(title, style="table.title"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        padding=(0, 1, 0, 0),
    )
    for column in shown:
        table.add_column(
            Text(column.heading), justify=column.justify, no_wrap=True, overflow="ellipsis", width=column.width
        )
    for number, row in enumerate(rows):
        style = STYLES.get(row.run.status, "red")
        cells = [Text(column.cells[number], style=style if column.title == "status" else "") for column in shown]
        table.add_row(*cells)
    console.print(table)
    for caption in filter(None, (about_intervals(rows, metric), about_ranks(rows))):
        console.print(caption, style="dim", markup=False)
    for mark, names in marked(rows).items():
        console.print(f"! {mark}: {names}", style="yellow", markup=False, soft_wrap=True)
    if told := cut_runs(rows):
        console.print(told, style="yellow", markup=False, soft_wrap=True)
    if left_out:
        names = ", ".join(column.title for column in left_out)
        console.print(f"Not shown for want of width: {names}; compare.format=csv has all.", style="dim", markup=False)


def leaderboard(rows: Sequence[Row], options: Sequence[str], metric: str | None) -> list[Column]:
    """All columns in the order in which they stand."""
    short = short_options(options)
    label = LABELS.get(metric or "", metric or "")
    grouped = any(row.members for row in rows)
    others = list(dict.fromkeys(name for row in rows for name in row.scores if name != metric))
    suite = [name for name in (MEAN_RANK, *_suite_columns(rows)) if name in others]
    shares = in_percent(rows)
    is_share = metric in shares
    cells = {option: [_option(row, option) for row in rows] for option in options if not (grouped and option == "seed")}
    # Of options that always change together, the first says it all.
    telling = {_partition(values): option for option, values in reversed(cells.items())}.values()
    columns = [
        Column("run", [shorten(row.name, WIDEST) for row in rows], ALWAYS, "left"),
        *(
            Column(short[option], [shorten(value, WIDEST) for value in values], OPTION if option in telling else SAME)
            for option, values in cells.items()
        ),
        # A run without a score says here what is wrong with it.
        Column(
            _heading(metric, label, is_share, grouped),
            [
                interval(row.scores.get(metric or ""), is_share) or shorten(_why_none(row, metric), ERROR_WIDTH, True)
                for row in rows
            ],
            ALWAYS,
        ),
        *(
            Column(LABELS.get(name, name), [number(row.scores.get(name), name in shares) for row in rows], SUITE)
            for name in suite
        ),
        Column("gain", [_gain(row, metric, is_share) for row in rows], GAIN),
        Column("cut %", [f"{100 * row.cut[0] / row.cut[1]:.1f}" if row.cut[0] else "-" for row in rows], N),
        Column("n", [_n(row.scores.get(metric or "")) for row in rows], N),
        Column("status", [f"{row.status} !" if row.marks else row.status for row in rows], ALWAYS, "left"),
        Column("time", [_each(row.seconds, duration) for row in rows], TIME),
        Column("ex/s", [_each(row.samples_per_s, "{:.4g}".format) for row in rows], RATE),
        Column("GiB", [_each(row.memory_gib, "{:.3g}".format) for row in rows], MEMORY),
        Column("note", [row.note for row in rows], NOTE, "left"),
        *(
            Column(LABELS.get(other, other), [number(row.scores.get(other), other in shares) for row in rows], OTHER)
            for other in others
            if other not in suite
        ),
    ]
    return [column for column in columns if column.importance == ALWAYS or set(column.cells) - {"-", ""}]


def _suite_columns(rows: Sequence[Row]) -> list[str]:
    """The main metric of each data set of the runs' suites."""
    suites = (item for row in rows for item in row.run.suite.items())
    return list(dict.fromkeys(f"{name}/{each.get('main_metric')}" for name, of in suites for each in of.values()))


def marked(rows: Sequence[Row]) -> dict[str, str]:
    """Mark -> the runs that bear it."""
    names: dict[str, list[str]] = {}
    for row in rows:
        for mark in row.marks:
            names.setdefault(mark, []).append(row.name)
    return {mark: _some(found) for mark, found in names.items()}


def cut_runs(rows: Sequence[Row]) -> str:
    """Whose answers were cut at the limit of their length, in a sentence; nothing where none were."""
    found = [f"{row.name} ({row.cut[0]:,} of {row.cut[1]:,})" for row in rows if row.cut[0]]
    return f"Answers that were cut at evaluation.max_new_tokens, without an end: {_some(found)}" if found else ""


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if names[3:] else "")


def _why_none(row: Row, metric: str | None) -> str:
    """What stands in the place of a score."""
    reason = row.undefined.get(metric or "")
    return f"{NONE}: {reason}" if isinstance(reason, str) else row.note or "-"


def _partition(values: Sequence[str]) -> tuple[int, ...]:
    """Which rows have the same value: equal for options that change together."""
    first: dict[str, int] = {}
    return tuple(first.setdefault(value, index) for index, value in enumerate(values))


def fit(columns: Sequence[Column], width: int) -> tuple[list[Column], list[Column]]:
    """The most important columns that fit, in their order, and the rest. A note takes the width that remains."""
    space, chosen = width, []
    for column in sorted(columns, key=lambda column: column.importance):
        need = min(column.width, NOTE_WIDTH) if column.title == "note" else column.width
        if column.importance == ALWAYS or need + 2 <= space:
            chosen.append(column)
            space -= need + 2
    shown = [column for column in columns if column in chosen]
    widest = {"note": NOTE_WIDTH + max(space, 0), "run": max(8, chosen[0].width + min(space, 0))}
    shown = [
        Column(
            c.title, [shorten(cell, widest[c.title], c.title == "note") for cell in c.cells], c.importance, c.justify
        )
        if c.title in widest
        else c
        for c in shown
    ]
    return shown, [column for column in columns if column not in chosen]


def shorten(text: str, width: int, at_end: bool = False) -> str:
    """The text in one line of so many columns of a terminal, with … in place of its middle or of its end."""
    text = " ".join(text.split())
    if cell_len(text) <= width:
        return text
    if at_end:
        return set_cell_size(text, width - 1).rstrip() + "…"
    head = (width - 1) // 2
    tail = text[-(width - 1 - head) :]
    while cell_len(tail) > width - 1 - head:
        tail = tail[1:]
    return set_cell_size(text, head) + "…" + tail


def full_sheet(rows: Sequence[Row], options: Sequence[str], metric: str | None, title: str) -> Sheet:
    """Everything that is known of every run, options under their full names and scores as they were measured."""
    others = list(dict.fromkeys(name for row in rows for name in row.scores if name != metric))
    return Sheet(title, [_full(row, options, metric, others) for row in rows], {"metric": metric})


def short_sheet(rows: Sequence[Row], options: Sequence[str], metric: str | None, title: str) -> Sheet:
    """The cells of the terminal's table without its limits."""
    columns = leaderboard(rows, options, metric)
    notes = list(filter(None, (about_intervals(rows, metric), about_ranks(rows))))
    return Sheet(title, [{c.title: c.cells[index] for c in columns} for index in range(len(rows))], notes=notes)


def _full(row: Row, options: Sequence[str], metric: str | None, others: Sequence[str]) -> dict[str, Any]:
    found = row.scores.get(metric or "")
    before = row.base.get(metric or "")
    seeds = {"seeds": found.seeds if found else None, "deviation": found.deviation if found else None}
    return {
        "run": row.name,
        "directory": str(row.run.directory),
        "status": row.status,
        **{option: row.run.options.get(option) for option in options if not (row.members and option == "seed")},
        metric or "score": found.value if found else None,
        "low": found.low if found else None,
        "high": found.high if found else None,
        "interval": found.method if found else None,
        **(seeds if row.members else {}),
        "n": found.n if found else None,
        "cut": row.cut[0] if row.cut[1] else None,
        "base": before.value if before else None,
        **{name: row.scores[name].value if name in row.scores else None for name in others},
        "seconds": row.seconds,
        "samples_per_s": row.samples_per_s,
        "memory_gib": row.memory_gib,
        "note": row.note,
    }


def number(found: Score | None, is_share: bool) -> str:
    """A share in percent, anything else as it is."""
    if found is None:
        return "-"
    return f"{100 * found.value:.2f}" if is_share else f"{found.value:.4g}"


def interval(found: Score | None, is_share: bool) -> str:
    """`81.50 [75.5, 86.3]`, or over seeds `81.50 ± 0.71 (2)`; nothing without a score."""
    if found is None:
        return ""
    scale = 100 if is_share else 1
    if found.seeds:
        spread = "" if found.deviation is None else f" ± {scale * found.deviation:.2f}"
        return f"{number(found, is_share)}{spread} ({found.seeds})"
    if found.low is None or found.high is None:
        return number(found, is_share)
    return f"{number(found, is_share)} [{scale * found.low:.1f}, {scale * found.high:.1f}]"


def duration(span_s: float) -> str:
    """`48 s`, `12:30 min` or `3:05 h`."""
    if span_s < 60:
        return f"{span_s:.0f} s"
    minutes, rest = divmod(round(span_s), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02} h"


def _heading(metric: str | None, label: str, is_share: bool, grouped: bool) -> str:
    unit = " %" if is_share else ""
    return "" if metric is None else f"{label}{unit} ± (seeds)" if grouped else f"{label}{unit} [95 %]"


def _option(row: Row, option: str) -> str:
    return plain(row.run.options[option]) if option in row.run.options else "-"


def _gain(row: Row, metric: str | None, is_share: bool) -> str:
    after, before = row.scores.get(metric or ""), row.base.get(metric or "")
    if after is None or before is None or after is before:
        return "-"
    gain = after.value - before.value
    return f"{100 * gain:+.2f}" if is_share else f"{gain:+.4g}"


def _n(found: Score | None) -> str:
    return f"{found.n:,}" if found and found.n else "-"


def _each(value: Any, show: Callable[[Any], str]) -> str:
    return "-" if value is None else show(value)
