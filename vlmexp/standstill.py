"""Jobs that come to their time limit again and again without getting any further.

run.json keeps, for each attempt, where the run stood as it began. Nothing has to be written at an attempt's end, so an
attempt that is killed breaks nothing.
"""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmexp.errors import UserError
from vlmexp.files import digest, read_json, write_json

_MOST = 2  # attempts in a row that come to the limit where they began
_MOST_WITH_EARLY = 4  # counted with those that were told before the run began: that one may have had bad luck
# What an attempt writes however far it comes; so are hidden files, and what the ranks log.
_NO_PROGRESS = ("run.json", "config.resolved.yaml", "metrics.jsonl", "bad.jsonl", "duplicates.jsonl")
_NO_PROGRESS_FOLDERS = ("tensorboard", "wandb")
_ANSWERS = "*.partial-rank*.jsonl"


class Standstill(UserError):
    """A job got nowhere before its time limit, and would not the next time."""


def where_it_stands(directory: Path, stages: Mapping[str, Any], data: Iterable[Path]) -> str:
    """A digest of what a next attempt would find: stages that are done, checkpoints, answers, other files, data.

    Args:
        directory: of the run.
        stages: as run.json has them.
        data: folders into which data and models are loaded, which other runs may use as well.
    """
    return digest(
        {
            "stages": sorted(name for name, entry in stages.items() if entry["status"] == "done"),
            "answers": sum(
                _answers(path) for part in ("", "suite/**/") for path in directory.glob(f"{part}evaluation/{_ANSWERS}")
            ),
            "files": sorted(_files(directory)),
            "data": sorted(entry for folder in data for entry in _entries(folder)),
        }
    )


def shared_folders(data: Path, options: Mapping[str, Any]) -> Iterator[Path]:
    """Folders in which it shows that data are prepared, and that data and models are downloaded.

    Args:
        data: below which data sets are prepared.
        options: of the data set's source, some of which name folders.
    """
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface", "hub")
    yield data
    for name, _ in _entries(data):
        yield from (Path(name), Path(name, "computed"))
    yield from (Path(value) for value in options.values() if value and isinstance(value, str))
    yield from (Path(name, "blobs") for name, _ in _entries(Path(hub)))


def refuse_standstill(directory: Path, stands: str, limit: str) -> None:
    """Keep in run.json that the attempt which just ended came to the time limit, and whether that was once too often.

    Attempts of the same job count; what is resumed is another job, with a limit that may be another.

    Args:
        stands: where the run stands now.
        limit: the time limit, in words.

    Raises:
        Standstill: the run has `failed`, for this reason.
    """
    record = read_json(directory / "run.json")
    attempt = record["attempts"][-1]
    attempt["at_limit"] = True
    fruitless = [
        other
        for other in record["attempts"]
        if other.get("at_limit") and other.get("began_at") == stands and other.get("job_id") == attempt["job_id"]
    ]
    ran = [other for other in fruitless if not other.get("told_at_once")]
    if len(ran) < _MOST and len(fruitless) < _MOST_WITH_EARLY:
        _keep(directory, record)
        return
    sweep = shlex.quote(f"sweep={directory.parent}")
    under_way = [name for name, entry in record["stages"].items() if entry["status"] != "done"]
    error = Standstill(
        f"The job was stopped {len(fruitless)} times in a row, by its time limit of {limit}, "
        f"{f'in stage {under_way[-1]} ' if under_way else ''}before it had done anything that lasts: no step of a "
        "training, no answer, no stage. It is not started again. Raise hydra.launcher.timeout_min: stage=resume "
        f"{sweep} resume.failed=true hydra.launcher.timeout_min=MINUTES"
    )
    attempt["status"] = "failed"
    if record["status"] == "preempted":  # and not done, by a stage other than the one that is done again here
        record |= {"status": "failed", "error": f"{type(error).__name__}: {error}"}
    _keep(directory, record)
    raise error


def _keep(directory: Path, record: Mapping[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a full disk keeps no job from its queue
        write_json(directory / "run.json", record)


def _answers(path: Path) -> int:
    """Whole lines of a file of answers without its header; they are the same in one file and in one of each rank."""
    return max(0, path.read_bytes().count(b"\n") - 1)


def _files(directory: Path) -> Iterator[tuple[str, int]]:
    """(name, bytes) of each file that a run's progress shows in."""
    for parent, folders, names in os.walk(directory):
        place = Path(parent).relative_to(directory)
        at_top = place == Path()
        folders[:] = [
            name for name in folders if not name.startswith(".") and not (at_top and name in _NO_PROGRESS_FOLDERS)
        ]
        for name in names:
            ours = at_top and (name in _NO_PROGRESS or (name.startswith("train") and name.endswith(".log")))
            if not (name.startswith(".") or ours or place.joinpath(name).match(f"evaluation/{_ANSWERS}")):
                yield str(place / name), Path(parent, name).lstat().st_size


def _entries(folder: Path) -> list[tuple[str, int]]:
    """(path, bytes; 0 for a folder) of what lies in a folder, as far as it can be read; others may be at work in it."""
    entries = []
    with contextlib.suppress(OSError, ValueError), os.scandir(os.path.expanduser(folder)) as found:
        for entry in found:
            entries.append((entry.path, entry.stat().st_size if entry.is_file(follow_symlinks=False) else 0))
    return entries
