"""The files of a split: one, a list of them, those that fit a pattern, or those of one kind in a folder."""

from __future__ import annotations

import glob
import re
from collections.abc import Sequence
from pathlib import Path

from vlmexp.data.tables import READERS


def split_files(given: str | Sequence[str]) -> list[Path]:
    """The files that an option names, in the order of their numbers and names.

    Raises:
        ValueError: there are none, or a folder has files of several kinds.
    """
    if not isinstance(given, str):
        return [path for name in given for path in split_files(name)]
    path = Path(given).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists() or not glob.has_magic(given):
        return [path]
    found = [file for name in glob.glob(str(path), recursive=True) if (file := Path(name)).is_file()]
    if not found:
        raise ValueError(f"no file fits this pattern (looked in {Path.cwd()})")
    return sorted(found, key=_in_order)


def _in_folder(folder: Path) -> list[Path]:
    found = [
        path for path in folder.iterdir() if path.suffix.lower() in READERS and not path.name.startswith((".", "_"))
    ]
    kinds = sorted({path.suffix.lower() for path in found})
    if not found:
        raise ValueError(f"the folder has no file that ends in {', '.join(READERS)}")
    if len(kinds) > 1:
        raise ValueError(
            f"the folder has files of several kinds ({', '.join(kinds)}): name them, as in {folder}/*{kinds[0]}"
        )
    return sorted(found, key=_in_order)


def _in_order(path: Path) -> list[tuple[int, str]]:
    """Part 10 behind part 9."""
    return [(int(piece), "") if piece.isdigit() else (-1, piece) for piece in re.split(r"(\d+)", str(path))]
