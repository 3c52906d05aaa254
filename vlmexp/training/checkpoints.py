"""Which checkpoint a resume may take: the newest one that is whole, whatever ended the attempts before.

A checkpoint has a list of its files, which says nothing (`null`) while it is written, and is completed when all else
has reached the disk:

    {"adapter_model.safetensors": {"bytes": 393216, "crc32": "5ba1c9e0"}, "trainer_state.json": ...}

So neither a killed process nor a power loss leaves something that passes for whole. Checkpoints of earlier versions
have no such list: the files themselves are looked at.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vlmexp.files import DamagedFile, crc32, read_json, remove_folder, settle, write_json
from vlmexp.models.checkpoint import damage_of

LIST, STATE = "files.json", "trainer_state.json"
SKIPPED = "skipped-"  # before the name of a checkpoint that was whole once
_NAME = re.compile(r"checkpoint-(\d+)")
_UNFINISHED = "it was not written to its end"
log = logging.getLogger(__name__)


def begin(checkpoint: Path) -> None:
    """Mark a checkpoint as one that is being written."""
    write_json(checkpoint / LIST, None)


def finish(checkpoint: Path) -> None:
    """Have the disk keep a checkpoint, and only then list its files: from here on it counts."""
    settle(checkpoint)
    write_json(checkpoint / LIST, {_name(path, checkpoint): _about(path) for path in _files(checkpoint)})


def newest_complete(folder: Path, note: Callable[[str], None] = log.warning, needs_best: bool = False) -> Path | None:
    """The whole checkpoint with the highest step.

    What was never written to its end is removed; what was and is damaged is kept under another name.

    Args:
        note: is told of each one that is not taken, and why.
        needs_best: the best checkpoint of those before has to be whole, too.
    """
    for left in folder.glob(".checkpoint-*.partial"):  # of a process that was killed when it removed one
        shutil.rmtree(left)
    found, skipped = _steps(folder), list[str]()
    for place in reversed(range(len(found))):
        path, wrong = found[place], damage(found[place])
        if wrong is None and not (path / LIST).exists() and any((older / LIST).exists() for older in found[:place]):
            wrong = f"{LIST} is missing"
        if wrong is None and needs_best:
            wrong = _damage_of_best(path)
        if wrong is None:
            _tell(note, skipped, f" {path.name} is taken.")
            return path
        if wrong == _UNFINISHED:
            remove_folder(path)
            skipped.append(f"{path} is not taken, as {wrong}: it is removed.")
        else:
            aside = path.with_name(f"{SKIPPED}{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.replace(aside)
            skipped.append(f"{path} is not taken, as {wrong}: it is kept as {aside.name}.")
    _tell(note, skipped)
    if found:
        note(f"No checkpoint in {folder} is whole: the training starts anew, at step 0.")
    return None


def _tell(note: Callable[[str], None], skipped: list[str], taken: str = "") -> None:
    for place, text in enumerate(skipped, start=1):
        note(text + taken * (place == len(skipped)))


def damage(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint, as `optimizer.pt has 0 bytes and had 8,192`; None if it is whole."""
    listed = checkpoint / LIST
    if not listed.exists():
        return _damage_without_list(checkpoint)
    try:
        files = read_json(listed)
    except DamagedFile:
        files = False
    if files is None:
        return _UNFINISHED
    if not isinstance(files, dict) or not listed.read_bytes().endswith(b"}\n"):
        return f"{LIST} is damaged"
    for name, about in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != about["bytes"]:
            return f"{name} has {size:,} bytes and had {about['bytes']:,} when it was written"
        if _about(path) != about:
            return f"{name} holds other bytes than were written"
    return None


def rotate(folder: Path, limit: int | None, best: str | None, needs_best: bool = False) -> None:
    """Remove the oldest checkpoints above the limit, but never the newest nor the best one.

    Old is what has a low step: times of change say nothing after a clock was set.

    Args:
        needs_best: keep the best ones of those that stay, too, each of which may have to be the newest again.
    """
    if limit is None or limit <= 0:
        return
    found = _steps(folder)
    kept = {found[-1].name, Path(best).name if best else ""} if found else set()
    spare = [path for path in found if path.name not in kept]
    old = spare[: max(0, len(found) - max(limit, len(found) - len(spare)))]
    needed = {_best(path) for path in found if path not in old} if needs_best else set()
    for path in old:
        if path.name not in needed:
            remove_folder(path)


def is_last(checkpoint: Path) -> bool:
    """Whether the checkpoint was made by the last step of its training, be it one that ended early."""
    state = _state(checkpoint)
    stopped = state["stateful_callbacks"]["TrainerControl"]["args"]["should_training_stop"]
    return bool(stopped or state["global_step"] >= state["max_steps"])


def written_by(checkpoint: Path) -> int | None:
    """How many processes wrote a checkpoint; None if it does not hold their random states (`train.save_only_model`)."""
    if (checkpoint / "rng_state.pth").exists():
        return 1
    return sum(1 for _ in checkpoint.glob("rng_state_*.pth")) or None


def missing_state(checkpoint: Path) -> list[str]:
    """What an exact resume needs and a checkpoint does not hold: one of `train.save_only_model`."""
    needed = {"the optimizer": "optimizer.pt", "the learning rate schedule": "scheduler.pt"}
    missing = [what for what, name in needed.items() if not (checkpoint / name).exists()]
    return missing if written_by(checkpoint) else [*missing, "the random numbers"]


def is_complete(checkpoint: Path) -> bool:
    """Whether the checkpoint was written to its end, and is as it was then."""
    return damage(checkpoint) is None


def _damage_without_list(checkpoint: Path) -> str | None:
    """As `damage`, of a checkpoint of an earlier version, which wrote the Trainer's state last."""
    try:
        finished = _state(checkpoint).get("global_step") == _step(checkpoint)
    except (OSError, ValueError, AttributeError):
        finished = False
    if not finished:
        return _UNFINISHED
    files = _files(checkpoint)
    for path in files:
        if wrong := damage_of(path):
            return f"{_name(path, checkpoint)} {wrong}"
    names = {_name(path, checkpoint) for path in files}
    if len(names) > 1 and not any(name.endswith(".safetensors") for name in names):
        return "its weights are missing"
    if "adapter_model.safetensors" in names and "adapter_config.json" not in names:
        return "adapter_config.json is missing"
    for index in [path for path in files if path.name.endswith(".index.json")]:
        if lost := set(read_json(index).get("weight_map", {}).values()) - names:
            return f"{min(lost)} is missing"
    missing = missing_state(checkpoint)
    if 0 < len(missing) < 3:  # with train.save_only_model it holds none of the three
        return f"it does not hold {missing[0]}"
    ranks = [name for name in names if name.startswith("rng_state_")]
    if ranks and {f"rng_state_{rank}.pth" for rank in range(max(2, len(ranks)))} != set(ranks):
        return "the random numbers of a process are missing"
    return None


def _damage_of_best(checkpoint: Path) -> str | None:
    """What is wrong with the best checkpoint so far."""
    path = checkpoint.with_name(_best(checkpoint))
    if path == checkpoint:
        return None
    wrong = damage(path) if path.is_dir() else "it is missing"
    return f"{wrong} (of the best one so far, {path.name})" if wrong else None


def _best(checkpoint: Path) -> str:
    """The name of the best checkpoint when this one was written; without any, its own."""
    return Path(_state(checkpoint).get("best_model_checkpoint") or checkpoint).name


def _about(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "crc32": f"{crc32(path):08x}"}


def _state(checkpoint: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return state


def _files(checkpoint: Path) -> list[Path]:
    return sorted(path for path in checkpoint.rglob("*") if path.is_file() and path != checkpoint / LIST)


def _name(path: Path, checkpoint: Path) -> str:
    return path.relative_to(checkpoint).as_posix()


def _steps(folder: Path) -> list[Path]:
    """The checkpoints of a folder, the one with the lowest step first."""
    return sorted((path for path in folder.glob("checkpoint-*") if _NAME.fullmatch(path.name)), key=_step)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
