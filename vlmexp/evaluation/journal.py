"""Answers on disk as they come: an evaluation that was ended, however it was ended, goes on where it stood.

Each rank appends to a file of its own, `<stem>.partial-rank<N>.jsonl`:

    {"fingerprint": "5c1b..."}               what the answers depend on
    {"id": "17", "prediction": "red"}        an answered question
    {"id": "40", "pred                       what a kill leaves: no line yet
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlmexp.files import write_jsonl
from vlmexp.storage import writing

Answer = Mapping[str, Any]  # prediction, and what else is kept of an answer
_KIND = ".partial-rank"


def take_up(folder: Path, stem: str, fingerprint: str) -> dict[str, Answer]:
    """Id -> answer of all that the ranks of earlier attempts have written; rank 0 calls it before any rank appends.

    The answers are gathered in the file of rank 0, without torn lines. Those with another fingerprint are thrown away.

    Raises:
        StorageError: the file cannot be written.
    """
    found: dict[str, Answer] = {}
    paths, own = _files(folder, stem), _file(folder, stem, 0)
    for path in paths:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        if lines and json.loads(lines[0]).get("fingerprint") == fingerprint:
            for line in lines[1:]:
                answer = json.loads(line)
                found[answer.pop("id")] = answer
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
                rest = memoryview("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
                while rest:
                    rest = rest[file.write(rest) :]


def forget(folder: Path, stem: str) -> None:
    """Remove the files of all ranks, once the answers are where they belong."""
    for path in _files(folder, stem):
        path.unlink(missing_ok=True)


def _file(folder: Path, stem: str, rank: int) -> Path:
    return folder / f"{stem}{_KIND}{rank}.jsonl"


def _files(folder: Path, stem: str) -> list[Path]:
    return sorted(folder.glob(f"{stem}{_KIND}*.jsonl"))
