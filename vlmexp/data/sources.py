"""Sources: functions that give the rows of each split of a data set.

A source takes plain options and returns `{split: rows}`. A row is a dict of column -> value. A media value is a path,
which is referred to where it lies, encoded bytes or a `data:` address in base64, which are stored with the prepared
data, or a list of such. A source that has a parameter `media_columns` is told which columns hold media. A data set's
YAML names its source by its name here or by a dotted path.
"""

from __future__ import annotations

import contextlib
import glob
import importlib
import inspect
import io
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmexp.data.literals import parsed
from vlmexp.data.nested import with_nested
from vlmexp.data.refcoco import FORMS, refcoco_rows
from vlmexp.data.regular_files import Unopened, open_regular, require_stored
from vlmexp.data.shaping import joined, shaped
from vlmexp.data.shards import split_files
from vlmexp.data.tables import READERS, read_rows
from vlmexp.data.vqav2 import SCRIPT, vqav2, vqav2_files
from vlmexp.errors import UserError, closest, unknown
from vlmexp.files import digest, read_json
from vlmexp.quoting import one_text

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


def hub(
    path: str,
    name: str | None = None,
    revision: str | None = None,
    where: Mapping[str, Any] | None = None,
    gathered: Mapping[str, Sequence[str]] | None = None,
    edits: Mapping[str, Sequence[str]] | None = None,
    each: str | None = None,
    choices: Mapping[str, str] | None = None,
    join: Mapping[str, Any] | None = None,
) -> dict[str, Rows]:
    """A data set of the Hugging Face Hub, or a local folder.

    A folder may be what `save_to_disk` wrote (without splits it is all `train`), or anything that
    `datasets.load_dataset` understands: parquet, jsonl or csv files, or images or videos in `train/`, `validation/` and
    `test/`, each with a `metadata.jsonl` or `metadata.csv` whose `file_name` names one.

    Args:
        where, gathered, edits, each, choices: what becomes of its rows, see vlmexp.data.shaping.
        join: another table of the same place, `{name, left, right, columns}`: the rows get these columns of its row
            whose column `right` equals their own `left`.
    """
    tables = _tables(path, name, revision)
    partners = _tables(path, join["name"], revision) if join else {}

    def rows(split: str) -> Iterator[dict[str, Any]]:
        table = tables[split]()
        found = _with_class_names(_without_decoding(table), table.features)
        if join and split in partners:
            other = _without_decoding(partners[split]())
            found = joined(found, other, join["left"], join["right"], join["columns"])
        yield from shaped(found, where, gathered, edits, each, choices)

    return {split: rows(split) for split in tables}


def refcoco(path: str, form: str = "normalised", revision: str | None = None) -> dict[str, Rows]:
    """RefCOCO, RefCOCO+ or RefCOCOg as published on the Hub, or a folder of the same.

    Args:
        form: normalised or pixels, see vlmexp.data.refcoco.
    """
    if form not in FORMS:
        raise unknown("dataset.options.form", form, FORMS)
    tables = _tables(path, None, revision)

    def rows(split: str) -> Iterator[dict[str, Any]]:
        yield from refcoco_rows(_without_decoding(tables[split]()), form)

    return {split: rows(split) for split in tables}


def _tables(path: str, name: str | None, revision: str | None) -> dict[str, Callable[[], Any]]:
    """Split -> a function that gives its table; no split is fetched or read before it is asked for."""
    if path == SCRIPT:
        raise UserError(
            f"dataset.options.path={path} is a script, which the datasets library runs no more: dataset=vqav2 is the "
            "same data from the official archives."
        )
    with _loading(path):
        for file in Path(path).rglob("*"):
            _require_regular(path, file)
        if (saved := _saved(Path(path))) is not None:
            return {split: _read_as(path, _from_disk, folder) for split, folder in saved.items()}
        builder = _builder(path, name, revision)
        splits = builder.config.data_files or builder.info.splits
        if not splits:  # of a kind that tells its splits only when it has been read
            builder.download_and_prepare()
            splits = builder.info.splits
        return {str(split): _read_as(path, _one_split, path, name, revision, str(split)) for split in splits}


def _builder(path: str, name: str | None, revision: str | None) -> Any:
    import datasets

    return datasets.load_dataset_builder(path, name, revision=revision, cache_dir=_copies(Path(path)))


def _one_split(path: str, name: str | None, revision: str | None, split: str) -> Any:
    """The table of a split, from the library's copy of the whole, or from a copy of this split alone."""
    import datasets

    builder = _builder(path, name, revision)
    copy, files = Path(builder.cache_dir), builder.config.data_files
    if files and len(files) > 1 and not (copy / datasets.config.DATASET_INFO_FILENAME).exists():
        builder.config.data_files = type(files)({split: files[split]})
        if told := builder.info.splits:  # what is said of it is still checked
            builder.info.splits = datasets.SplitDict({key: told[key] for key in told if key == split})
        copy = Path(datasets.config.HF_DATASETS_CACHE) / "splits" / digest([str(copy), split])[:16]
    builder.download_and_prepare(output_dir=str(copy))
    return builder.as_dataset(split)


def _from_disk(folder: Path) -> Any:
    import datasets

    return datasets.load_from_disk(str(folder))


def _read_as(path: str, read: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    def table() -> Any:
        with _loading(path):
            return read(*arguments)

    return table


@contextlib.contextmanager
def _loading(path: str) -> Iterator[None]:
    """Whatever the Hub's client raises, the user needs the data set's name and the reason."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(
            f"dataset.options.path={path} could not be loaded: {type(error).__name__}: {reason}. "
            "Check the name, the network and, for a gated data set, HF_TOKEN."
        ) from None


def _copies(folder: Path) -> str | None:
    """Where the library may keep its copy of a folder's tables; None for what is no folder.

    Under its own name for it, which is made of the folder's last name and the configuration's, it would take the copy
    for any other folder of these names, and for this one after a change.
    """
    import datasets

    if not folder.is_dir():
        return None
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(folder.rglob("*"))]
    return str(Path(datasets.config.HF_DATASETS_CACHE) / "folders" / digest([str(folder.resolve()), files])[:16])


def _require_regular(given: str, path: Path) -> None:
    """Refuse a folder with a file that the datasets library would wait for, or read for ever."""
    try:
        if not path.is_dir():
            with open_regular(path) as file:
                require_stored(file)
    except Unopened as error:
        raise UserError(f"dataset.options.path={given} cannot be read: {path} {error}.") from None


def _saved(folder: Path) -> Mapping[str, Path] | None:
    """Split -> folder of the splits with rows that `save_to_disk` wrote to a folder; None if it did not."""
    if (folder / "dataset_dict.json").is_file():
        folders = {split: folder / split for split in read_json(folder / "dataset_dict.json")["splits"]}
    elif (folder / "state.json").is_file():
        folders = {"train": folder}
    else:
        return None
    # The library writes no file for a split without rows, and then fails to load it.
    filled = {split: path for split, path in folders.items() if read_json(path / "state.json")["_data_files"]}
    if not filled:
        raise ValueError("it has no rows")
    return filled


def _with_class_names(rows: Rows, features: Mapping[str, Any]) -> Rows:
    """The rows with the names of classes, in lists and objects too, in the place of their numbers."""
    classed = {column: feature for column, feature in features.items() if _has_classes(feature)}
    if not classed:
        return rows
    return (row | {name: _class_name(row[name], feature) for name, feature in classed.items()} for row in rows)


def _has_classes(feature: Any) -> bool:
    import datasets

    if isinstance(feature, dict):
        return any(map(_has_classes, feature.values()))
    return isinstance(feature, datasets.ClassLabel) or _has_classes(getattr(feature, "feature", {}))


def _class_name(value: Any, feature: Any) -> Any:
    if isinstance(value, list):
        return [_class_name(item, feature.feature) for item in value]
    if isinstance(feature, dict):
        return value and {name: _class_name(value.get(name), inner) for name, inner in feature.items()}
    if not hasattr(feature, "names"):
        return value
    return feature.names[value] if isinstance(value, int) and 0 <= value < len(feature.names) else None


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


def _without_decoding(table: Any) -> Any:
    """The table with images and videos, in lists and objects too, as encoded bytes: files are stored as they came."""
    for column, feature in table.features.items():
        encoded = _encoded(feature)
        if encoded != feature:
            table = table.cast_column(column, encoded)
    return table


def _encoded(feature: Any) -> Any:
    import datasets

    if isinstance(feature, datasets.Image | datasets.Video):
        return type(feature)(decode=False)
    if isinstance(feature, datasets.List | datasets.LargeList):
        return type(feature)(_encoded(feature.feature))
    if isinstance(feature, dict):
        return {name: _encoded(inner) for name, inner in feature.items()}
    return feature


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
