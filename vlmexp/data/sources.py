"""Sources: functions that give the rows of each split of a data set.

A source takes plain options and returns `{split: rows}`. A row is a dict of column -> value. A media value is a path,
which is referred to where it lies, encoded bytes or a `data:` address in base64, which are stored with the prepared
data, or a list of such. A source that has a parameter `media_columns` is told which columns hold media. A data set's
YAML names its source by its name here or by a dotted path.
"""

from __future__ import annotations

import glob
import importlib
import inspect
import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vlmexp.data.hub import hub, refcoco
from vlmexp.data.local_files import files, table_columns
from vlmexp.data.shaping import Rows
from vlmexp.data.vqav2 import vqav2, vqav2_files
from vlmexp.errors import UserError, closest, unknown
from vlmexp.quoting import one_text

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
        if isinstance(value, int | float) and _takes_text(parameters[option]):
            raise UserError(
                f"dataset.options.{option}={value} is read as {value!r}, which is no text: write it with the quotes of "
                f"Hydra inside those of the shell, {one_text(f'dataset.options.{option}={value}')}"
            )
    return source  # type: ignore[no-any-return]


def named_splits(name: str, options: Mapping[str, Any]) -> list[str] | None:
    """The splits of a source; None if only its data say which there are.

    Raises:
        UserError: a file or folder that it is to read is not there.
    """
    if name not in _SPLITS_BY_OPTIONS:
        path = str(options.get("path", ""))
        if name in SOURCES and path.startswith(("/", "./", "../", "~")) and not Path(path).expanduser().exists():
            raise UserError(f"dataset.options.path={path}: there is no such folder. An id of the Hub is ORG/NAME.")
        return None
    return list(find_source(name, options)(**options))


def known_columns(name: str, options: Mapping[str, Any]) -> dict[str, list[str]]:
    """The columns of a source's splits, where that is known without reading them.

    Raises:
        UserError: the first row cannot be read.
    """
    return table_columns(options) if name == "files" else {}


def _takes_text(parameter: inspect.Parameter) -> bool:
    """Whether an option is annotated as a text, or none."""
    return str(parameter.annotation) in ("str", "str | None", "<class 'str'>")


def input_paths(options: Mapping[str, Any]) -> list[Path]:
    """The files and folders that a source reads, absolute; what is in them is part of what the data set is.

    They are the options that name one, or are a pattern. Not so `root`: the media below it are looked at one by one.
    """
    found = list[Path]()
    for option, value in options.items():
        values = value if isinstance(value, list | tuple) else [value]
        for text in [text for text in values if option != "root" and isinstance(text, str) and text]:
            path = Path(text).expanduser()
            patterns = glob.glob(str(path), recursive=True) if glob.has_magic(text) and not path.exists() else []
            found += [Path(name).resolve() for name in sorted(patterns)] or [path.resolve()] * path.exists()
    return found


def files_read(name: str, options: Mapping[str, Any], splits: Mapping[str, str | None]) -> list[Path]:
    """Further files that a source has read, which may not have been there before."""
    return vqav2_files(options["root"], splits.values()) if name == "vqav2" else []


# Of these the options tell the splits, and nothing is read before their rows are asked for.
_SPLITS_BY_OPTIONS = ("easyvqa", "shapes", "files", "vqav2")
SOURCES: dict[str, Source] = {
    "easyvqa": easyvqa,
    "shapes": shapes,
    "files": files,
    "hub": hub,
    "vqav2": vqav2,
    "refcoco": refcoco,
}
