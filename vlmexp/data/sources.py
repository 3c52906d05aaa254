"""Sources: functions that give the rows of each split of a data set.

A source takes plain options and returns `{split: rows}`. A row is a dict of column -> value. A media value is a path,
which is referred to where it lies, or encoded bytes, which are stored with the prepared data. A source that has a
parameter `media_columns` is told which columns hold media. A data set's YAML names its source by its name here or by a
dotted path.
"""

from __future__ import annotations

import importlib
import inspect
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmexp.errors import UserError, closest, unknown

Rows = Iterable[dict[str, Any]]
Source = Callable[..., Mapping[str, Rows]]


def easyvqa() -> dict[str, Rows]:
    """easy-VQA from the PyPI package `easy-vqa`: 4,000 + 1,000 images, 38,575 + 9,673 questions, 13 answers."""
    import easy_vqa

    from vlmexp.data.shapes import SHAPES

    def rows(questions: tuple[list[str], list[str], list[int]], paths: dict[int, str]) -> Iterator[dict[str, Any]]:
        for question, answer, image_id in sorted(zip(*questions, strict=True), key=lambda row: row[2]):
            kind = "yes/no" if answer in ("yes", "no") else "shape" if answer in SHAPES else "color"
            yield {
                "image": Path(paths[image_id]).read_bytes(),
                "question": question,
                "answer": answer,
                "answer_type": "yes/no" if kind == "yes/no" else "open",
                "question_type": kind,
            }

    return {
        "train": rows(easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "test": rows(easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }


def shapes(images: int, descriptions_per_image: int, seed: int) -> dict[str, Rows]:
    """Drawn shapes and their descriptions (see vlmexp.data.shapes)."""
    from vlmexp.data.shapes import examples

    def rows() -> Iterator[dict[str, Any]]:
        for image, descriptions in examples(images, descriptions_per_image, seed):
            buffer = io.BytesIO()
            image.save(buffer, "PNG")
            for description in descriptions:
                yield {"image": buffer.getvalue(), "question": "", "description": description}

    return {"train": rows()}


def files(
    train: str,
    validation: str | None = None,
    test: str | None = None,
    root: str | None = None,
    media_columns: Iterable[str] = (),
) -> dict[str, Rows]:
    """Local jsonl, json, csv or parquet files, one a split; media paths are relative to `root` or else to the file."""
    import datasets

    kinds = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}

    def rows(option: str, file: str) -> Iterator[dict[str, Any]]:
        path = Path(file).expanduser()
        if path.suffix not in kinds:
            raise UserError(f"dataset.options.{option}={file}: the file's ending must be one of {', '.join(kinds)}.")
        if not path.is_file():
            raise UserError(f"dataset.options.{option}={file}: there is no such file (looked at {path.resolve()}).")
        folder = (Path(root).expanduser() if root else path.parent).resolve()
        try:
            table = datasets.load_dataset(kinds[path.suffix], data_files=str(path), split="train")
        except (datasets.exceptions.DatasetGenerationError, StopIteration) as error:
            reason = "it has no rows" if path.stat().st_size == 0 else str(error.__cause__ or error)
            raise UserError(f"dataset.options.{option}={file} cannot be read: {reason}.") from None
        for row in table:
            for column in media_columns:
                value = row.get(column)
                if isinstance(value, list):
                    row[column] = [folder / item for item in value]
                elif value:
                    row[column] = folder / value
            yield row

    named = {"train": train, "validation": validation, "test": test}
    return {split: rows(split, file) for split, file in named.items() if file is not None}


def hub(path: str, name: str | None = None, revision: str | None = None) -> dict[str, Rows]:
    """A data set of the Hugging Face Hub, or a folder that `datasets.load_dataset` understands."""
    import datasets

    try:
        loaded = datasets.load_dataset(path, name, revision=revision)
    except Exception as error:  # whatever the Hub's client raises, the user needs the data set's name and the reason
        raise UserError(
            f"dataset.options.path={path} could not be loaded: {type(error).__name__}: {str(error).splitlines()[0]}. "
            "Check the name, the network and, for a gated data set, HF_TOKEN."
        ) from None
    return {split: _without_decoding(table) for split, table in loaded.items()}


def find_source(name: str, options: Mapping[str, Any]) -> Source:
    """The source of that name or dotted path, its options checked against its signature.

    Raises:
        UserError: no such source, or an option that it does not take.
    """
    module_name, _, function_name = name.rpartition(".")
    if not module_name and name not in SOURCES:
        raise unknown("dataset.source", name, SOURCES)
    if module_name:
        try:
            source = getattr(importlib.import_module(module_name), function_name)
        except (ImportError, AttributeError) as error:
            raise UserError(f"dataset.source={name} cannot be imported: {error}.") from None
    else:
        source = SOURCES[name]
    parameters = inspect.signature(source).parameters
    for option, value in options.items():
        if option not in parameters or option == "media_columns":
            raise UserError(
                f"dataset.options.{option}={value}: the source {name!r} has no option {option!r}"
                f"{closest(option, parameters) or '.'} It takes: {', '.join(parameters) or 'none'}."
            )
    return source  # type: ignore[no-any-return]


def _without_decoding(table: Any) -> Any:
    """The table with its image columns as encoded bytes, so that files are stored as they came."""
    import datasets

    for column, feature in table.features.items():
        if isinstance(feature, datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
    return table


SOURCES: dict[str, Source] = {"easyvqa": easyvqa, "shapes": shapes, "files": files, "hub": hub}
