"""The runs that did not get through: why, where their log is, and how to go on."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from vlmexp.comparison.reading import RunFiles
from vlmexp.comparison.rows import Row
from vlmexp.comparison.sheets import Sheet

FAILED = ("failed", "lost", "broken")
_TAIL = 20_000  # bytes of the log's end that are read


def failures_sheet(rows: Sequence[Row], lines: int) -> Sheet:
    """One row for each failed, lost or unreadable run with the last lines of its log."""
    failed = [row for row in rows if row.run.status in FAILED]
    return Sheet(
        f"{len(failed)} of {len(rows)} runs failed or were lost",
        [
            {
                "run": row.name,
                "status": row.run.status,
                "error": row.run.error,
                "log": str(row.run.directory / "train.log"),
                "last lines": "\n".join(last_lines(row.run.directory / "train.log", lines)),
                "continue": _continue(row.run),
            }
            for row in failed
        ],
    )


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file that are not empty; none if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            text = file.read().decode("utf-8", errors="replace")
    except OSError:
        return []
    return [line for line in text.splitlines() if line.strip()][-count:]


def _continue(run: RunFiles) -> str:
    return "" if run.status == "broken" else shlex.join(["python", "-m", "vlmexp", f"run={run.directory}"])
