"""Rows of local files, with the places of their media."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmexp.data.literals import parsed
from vlmexp.data.nested import with_nested
from vlmexp.data.shaping import Rows, shaped
from vlmexp.data.shards import split_files
from vlmexp.data.tables import READERS, read_rows
from vlmexp.errors import UserError

_ALIKE = (".csv", ".tsv")  # tables whose rows all have the same columns
_ELSEWHERE = (".parquet",)  # read in a process of its own, which each point of a sweep would start
_FEW = 200  # rows, which are read in a moment


def files(
    train: str | Sequence[str] | None = None,
    validation: str | Sequence[str] | None = None,
    test: str | Sequence[str] | None = None,
    root: str | None = None,
    paths: Mapping[str, str] | None = None,
    where: Mapping[str, Any] | None = None,
    gathered: Mapping[str, Sequence[str]] | None = None,
    edits: Mapping[str, Sequence[str]] | None = None,
    each: str | None = None,
    choices: Mapping[str, str] | None = None,
    media_columns: Iterable[str] = (),
) -> dict[str, Rows]:
    """Local jsonl, json, csv, tsv or parquet files; media paths are relative to `root` or else to the file.

    Args:
        train, validation, test: a file, a list of files, a pattern such as `data/train-*.parquet`, or a folder.
        paths: column to add -> its text, with the row's own columns in braces: `{clip: "videos/{video_id}.mp4"}`.
        where, gathered, edits, each, choices: what becomes of the rows, see vlmexp.data.shaping.
    """

    media, paths = list(media_columns), paths or {}
    dotted = [column for column in media if "." in column]

    def rows(option: str, found: Sequence[tuple[str, Path]]) -> Iterator[dict[str, Any]]:
        for file, path in found:
            folder = (Path(root).expanduser() if root else path.parent).resolve()
            try:
                there = read_rows(path, may_be_empty=len(found) > 1)
                named = (row | {add: _filled(add, text, row, file) for add, text in paths.items()} for row in there)
                for row in shaped(named, where, gathered, edits, each, choices):
                    row = with_nested(row, dotted) if dotted else row
                    yield row | {column: _placed(row[column], folder) for column in media if column in row}
            except ValueError as error:
                raise UserError(f"dataset.options.{option}={file} cannot be read: {error}.") from None

    named = {"train": train, "validation": validation, "test": test}
    there = {split: _found(split, given) for split, given in named.items() if given}
    return {split: rows(split, found) for split, found in there.items()}


def table_columns(options: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns of each split whose tables tell them at once: texts whose rows are all alike, or few."""
    named = {split: options.get(split) for split in ("train", "validation", "test")}
    known = {}
    for split, given in named.items():
        endings = {path.suffix.lower() for _, path in _found(split, given)} if given else set()
        if not endings or not endings.isdisjoint(_ELSEWHERE):
            continue
        are_alike = endings.issubset(_ALIKE)
        rows = iter(files(**{**options, **dict.fromkeys(named), split: given})[split])
        first = list(itertools.islice(rows, 1 if are_alike else _FEW))
        if are_alike or len(first) < _FEW:
            known[split] = list(dict.fromkeys(column for row in first for column in row))
    return known


def _found(option: str, given: Any) -> list[tuple[str, Path]]:
    """The files of a split, each with how it was named; a UserError for what is none."""
    if not isinstance(given, str) and not (isinstance(given, list) and all(isinstance(text, str) for text in given)):
        raise UserError(
            f"dataset.options.{option}={given} is no file: write dataset.options.{option}=FILE, or a list of them."
        )
    try:
        found = split_files(given)
    except ValueError as error:
        raise UserError(f"dataset.options.{option}={given}: {error}.") from None
    named = [(given if len(found) == 1 and isinstance(given, str) else str(path), path) for path in found]
    for file, path in named:
        if path.suffix.lower() not in READERS:
            raise UserError(f"dataset.options.{option}={file}: the file's ending must be one of {', '.join(READERS)}.")
        if not path.exists():
            raise UserError(f"dataset.options.{option}={file}: there is no such file (looked at {path.resolve()}).")
    return named


def _filled(column: str, text: str, row: Mapping[str, Any], file: str) -> str:
    """The text with the row's columns in the place of their names in braces."""
    try:
        return text.format_map(row)
    except KeyError as error:
        raise UserError(f"dataset.options.paths: a row of {file} has no column {error}.") from None
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(
            f"dataset.options.paths.{column}={text}: {error} in a row of {file}. Put names of columns in braces, as in "
            "videos/{video_id}.mp4."
        ) from None


def _placed(value: Any, folder: Path) -> Any:
    """A media value with its relative paths below `folder`; whatever is no path stays as it is."""
    if isinstance(value, str) and value.startswith("["):  # a list that went through a table program
        value = found if isinstance(found := parsed(value), list) else value
    if isinstance(value, list):
        return [_placed(item, folder) for item in value]
    if isinstance(value, dict) and value.get("bytes") is None and isinstance(value.get("path"), str):
        return folder / os.path.expanduser(value["path"])
    is_path = isinstance(value, str) and value and "://" not in value and not value.startswith("data:")
    return folder / os.path.expanduser(value) if is_path else value
