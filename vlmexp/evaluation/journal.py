"""Answers on disk as they come: an evaluation that was ended, however it was ended, goes on where it stood.

Each rank appends to a file of its own, `<stem>.partial-rank<N>.jsonl`:

    {"fingerprint": "5c1b..."}               what the answers depend on
    {"id": "17", "prediction": "red"}        an answered question
    {"id": "40", "pred                       what a kill leaves: no line yet
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vlmexp.files import json_text, write_jsonl
from vlmexp.storage import writing

Answer = Mapping[str, Any]  # prediction, and what else is kept of an answer
PARTS = ("id", "prediction")  # texts that every answer has
_KIND = ".partial-rank"


def take_up(folder: Path, stem: str, fingerprint: str, note: Callable[[str], None]) -> dict[str, Answer]:
    """Id -> answer of all that the ranks of earlier attempts have written; rank 0 calls it before any rank appends.

    The answers are gathered in the file of rank 0, without torn lines. Those with another fingerprint are thrown away.

    Args:
        note: is told of lines that no kill has left so, which are dropped.

    Raises:
        StorageError: the file cannot be written.
    """
    found: dict[str, Answer] = {}
    paths, own = _files(folder, stem), _file(folder, stem, 0)
    for path in paths:
        lines = path.read_bytes().split(b"\n")[:-1]
        made_for = _parsed(lines[0]).get("fingerprint") if lines else ""
        if made_for not in (fingerprint, None):
            continue
        rows = map(_parsed, lines[1:] if made_for else [])  # without a header nobody knows what they depend on
        answers = [row for row in rows if all(isinstance(row.get(name), str) for name in PARTS)]
        found |= {row["id"]: {name: row[name] for name in row if name != "id"} for row in answers}
        if damaged := len(lines) - len(answers) - (made_for is not None):
            note(f"{path}: {damaged} of {len(lines)} lines are damaged; their questions are asked again.")
    if found:
        with writing(own):
            write_jsonl(own, [{"fingerprint": fingerprint}, *({"id": id, **row} for id, row in found.items())])
    for path in paths:
        if not found or path != own:
            path.unlink()
    return found


class Journal:
    """Where one rank's answers go; whole lines, in the file when `append` returns.

    Raises:
        StorageError: the file cannot be written, for one because the disk is full. What was appended before stays.
    """

    def __init__(self, folder: Path, stem: str, fingerprint: str, rank: int) -> None:
        self.path = _file(folder, stem, rank)
        self._fingerprint = fingerprint

    def append(self, answers: Mapping[str, Answer]) -> None:
        """Add answers by their question's id."""
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("ab", buffering=0) as file:
                header = [] if file.tell() else [{"fingerprint": self._fingerprint}]
                rows = [*header, *({"id": id, **answer} for id, answer in answers.items())]
                rest = memoryview("".join(json_text(row) + "\n" for row in rows).encode())
                while rest:
                    rest = rest[file.write(rest) :]


def forget(folder: Path, stem: str) -> None:
    """Remove the files of all ranks, once the answers are where they belong."""
    for path in _files(folder, stem):
        path.unlink(missing_ok=True)


def _parsed(line: bytes) -> dict[str, Any]:
    """The object of a line; an empty one if the line is damaged."""
    try:
        row = json.loads(line.decode())
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _file(folder: Path, stem: str, rank: int) -> Path:
    return folder / f"{stem}{_KIND}{rank}.jsonl"


def _files(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}{_KIND}*.jsonl"))
