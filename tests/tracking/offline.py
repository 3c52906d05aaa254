"""What W&B wrote to disk, read back from its own file.

The file is a LevelDB log behind a header of 7 bytes: blocks of 32 KiB, in them pieces of records, each behind its
checksum, length and kind (1 whole, 2 first, 3 middle, 4 last); a record is a protobuf message of W&B's.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

BLOCK = 32_768


def records(path: Path) -> Iterator[Any]:
    data, place, pieces = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        pieces += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            yield record
            pieces = b""


def values_of(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


class OfflineRun:
    """The identity, configuration, history and summary in one offline-run directory."""

    def __init__(self, directory: Path) -> None:
        (path,) = directory.glob("*.wandb")
        self.directory = directory
        self.config: dict[str, Any] = {}
        self.summary: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.artifacts: list[Any] = []
        for record in records(path):
            match record.WhichOneof("record_type"):
                case "run":
                    self.run = record.run
                    self.config |= values_of(record.run.config.update)
                case "config":
                    self.config |= values_of(record.config.update)
                case "summary":
                    self.summary |= values_of(record.summary.update)
                case "history":
                    self.history.append(values_of(record.history.item))
                case "artifact":
                    self.artifacts.append(record.artifact)
                case "exit":
                    self.exit_code = record.exit.exit_code

    def table(self, name: str) -> dict[str, Any]:
        (path,) = self.directory.glob(f"files/media/table/{name}_*.table.json")
        return json.loads(path.read_text())


def offline_runs(directory: Path) -> list[OfflineRun]:
    """Those of a run directory, the oldest first."""
    return [OfflineRun(path) for path in sorted(directory.glob("wandb/offline-run-*"))]
