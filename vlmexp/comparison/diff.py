"""What differs between two runs: options, prompt, data, packages, code and machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from vlmexp.comparison.reading import RunFiles, leaves
from vlmexp.comparison.rows import plain
from vlmexp.comparison.sheets import Sheet

# Which parts of run.json are compared; what changes from run to run by its nature (times, process ids) is not.
RECORDED = {"data": "data", "packages": "packages", "hardware": "machine", "git": "code", "model": "model"}
PROMPT = "collator"


def diff_sheet(first: RunFiles, second: RunFiles, ignored: tuple[str, ...]) -> Sheet:
    """One row for each value that differs, with the part of the run that it belongs to.

    Args:
        ignored: options and whole groups that change no result.
    """
    rows = [
        {"part": part, "what": name, "first": _shown(old, name), "second": _shown(new, name)}
        for part, old, new in _parts(first, second, ignored)
        for name in differing(old, new)
    ]
    names = {"first run": str(first.directory), "second run": str(second.directory)}
    return Sheet("What differs", rows, names, [] if rows else ["The two runs do not differ in anything recorded."])


def differing(values: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names whose values are not the same; what one lacks and the other has as null is the same."""
    return [name for name in sorted(values.keys() | other.keys()) if values.get(name) != other.get(name)]


def _parts(
    first: RunFiles, second: RunFiles, ignored: tuple[str, ...]
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(part, its values in the first run, in the second)."""
    options = [
        {n: value for n, value in run.options.items() if n not in ignored and n.partition(".")[0] not in ignored}
        for run in (first, second)
    ]
    for part, is_prompt in (("config", False), ("prompt", True)):
        old, new = (
            {n: v for n, v in found.items() if (n.partition(".")[0] == PROMPT) == is_prompt} for found in options
        )
        yield part, old, new
    for key, part in RECORDED.items():
        old, new = (
            leaves(found) if isinstance(found := run.get(key), dict) and found else {} for run in (first, second)
        )
        if key == "git":
            old, new = old | _patch(first), new | _patch(second)
        yield part, old, new
    recorded = ("vlmexp", "fallbacks")
    old, new = ({name: plain(run.get(name)) for name in recorded if run.get(name)} for run in (first, second))
    yield "run", old, new


def _patch(run: RunFiles) -> dict[str, str]:
    """The uncommitted change that a run was made with, as the hash of its git.diff."""
    try:
        content = (run.directory / "git.diff").read_bytes()
    except OSError:
        return {}
    return {"git.diff (SHA-256)": hashlib.sha256(content).hexdigest()[:12]}


def _shown(values: Mapping[str, Any], name: str) -> str | None:
    return plain(values[name]) if name in values else None
