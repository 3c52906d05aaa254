"""Data sets of the Hugging Face Hub, and local folders that its library reads; each split when it is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vlmexp.data.refcoco import FORMS, refcoco_rows
from vlmexp.data.regular_files import Unopened, open_regular, require_stored
from vlmexp.data.shaping import Rows, joined, shaped
from vlmexp.data.vqav2 import SCRIPT
from vlmexp.errors import UserError, unknown
from vlmexp.files import digest, read_json


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
