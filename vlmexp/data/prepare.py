"""Prepared data: the splits of a data set on disk, made once and checked whenever they are used again.

<paths.data>/<name>-<hash of the request>/
    manifest.json                          request, split rule, counts, what was left out, fingerprint
    train.arrow validation.arrow test.arrow   the source's columns, memory-mapped when read
    media/                                 every distinct image or video that came as bytes, as encoded by the source
    referenced.jsonl                       every file that is used where it lies, with its hash
    stamps.json                            size and times of these and of the media when their content was last read
    bad.jsonl                              every row that cannot be used: split, row, column, path, reason
    duplicates.jsonl                       every row that shows what a row of another split shows
    pictures.jsonl                         what every image and video shows: equal for files that show the same; and
                                           the width and height of every image, upright
"""

from __future__ import annotations

import contextlib
import inspect
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock

from vlmexp.data.contents import contents_of, shown
from vlmexp.data.division import divide
from vlmexp.data.duplicates import Part, near_duplicates, write_duplicates
from vlmexp.data.garbage import spared
from vlmexp.data.limits import budget
from vlmexp.data.options import data_options
from vlmexp.data.reading import Reading, media_columns
from vlmexp.data.regular_files import Unopened, content_digest
from vlmexp.data.rows import MediaStore
from vlmexp.data.sources import Source, files_read, find_source, input_paths
from vlmexp.data.splits import SPLITS, require_train, resolved_splits, split_rule
from vlmexp.data.tables import require_readable
from vlmexp.data.unchanged import first_changed, remember
from vlmexp.data.verify import Verified, content, stamp, state, verify
from vlmexp.data.video_readers import resolve_library
from vlmexp.errors import UserError
from vlmexp.files import digest, file_digest, new_folder, read_json, read_jsonl, write_json, write_jsonl
from vlmexp.storage import writing

LISTS = ("bad.jsonl", "duplicates.jsonl", "pictures.jsonl")
_WORDS = {"image": "picture", "video": "video"}
_FORMAT = 6  # raise it when the same request would be prepared in another way
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Prepared:
    """A prepared data set: its folder and the content of its manifest.json."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        """Changes with any byte of the splits, and with any image or video as it was when the data were prepared."""
        return str(self.manifest["fingerprint"])

    def arrow(self, split: str) -> Path:
        return self.folder / f"{split}.arrow"

    def duplicates(self) -> list[dict[str, Any]]:
        """The lines of duplicates.jsonl; none of data that were prepared by an older version."""
        return read_jsonl(self.folder / "duplicates.jsonl")

    @property
    def shown_kind(self) -> str:
        """What the rows show, in a word: pictures, videos, or texts where they have neither."""
        columns = self.manifest["request"]["columns"]
        return next((f"{word}s" for role, word in _WORDS.items() if columns.get(role)), "texts")

    def shows(self) -> dict[str, str]:
        """What each image and video shows, by its name in the rows: equal for files that show the same."""
        return {line["path"]: line["shows"] for line in read_jsonl(self.folder / "pictures.jsonl")}

    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Width and height of each image, upright, by its path; of data of an older version there are none."""
        lines = read_jsonl(self.folder / "pictures.jsonl")
        below = str(self.folder)
        return {os.path.join(below, line["path"]): tuple(line["size"]) for line in lines if "size" in line}

    def name_of(self, media: Path) -> str:
        """How the rows name a file: relative to the folder where it lies there."""
        return str(media.relative_to(self.folder) if media.is_relative_to(self.folder) else media)


def prepare(
    data_dir: Path,
    name: str,
    version: str,
    source: str,
    options: Mapping[str, Any],
    splits: Mapping[str, str | None],
    validation_fraction: float,
    test_fraction: float,
    split_seed: int,
    columns: Mapping[str, str | None],
    required: Sequence[str] = ("question", "answer"),
    on_bad_sample: str = "error",
    max_bad_share: float = 0.05,
    video_library: str = "auto",
    on_duplicates: str = "report",
    convert: str = "auto",
    needs_train: bool = True,
    box_form: str = "xywh",
) -> Prepared:
    """Return the prepared data set, making it first if it is not there or no longer what it was.

    A split that the source lacks is taken out of the train split: whole images, with all their questions, in the order
    of the hash of the image and `split_seed`. So no image is in two splits, whatever names its files have. Between
    splits of the source's own, rows that show the same are listed in duplicates.jsonl.

    Args:
        columns: role -> column; image and video are media, answer and choices lists of texts, box one or several boxes,
            every other role a text.
        required: roles whose text must not be empty.
        on_bad_sample: whether rows that cannot be used are an `error`, or left out (`skip`).
        max_bad_share: of the rows of a split; above it they are an error even with `skip`.
        video_library: the library that must be able to read the videos; data prepared for another are checked again.
        on_duplicates: whether rows that show what rows of another split show are listed (`report`), leave the train
            split (`drop_from_train`), or are an `error`.
        convert: whether lists and whole numbers that a table program has turned into something else become what they
            were: `auto`, `always` or `never` (see vlmexp.data.conversions).
        needs_train: whether a data set without a train split is of no use.
        box_form: what the numbers of a box are, see vlmexp.data.boxes.

    Raises:
        UserError: unknown source or option, a split or column that the source does not have, no rows, bad rows, or
            duplicates that are an error.
    """
    rows_of = find_source(source, options)
    request = {
        "format": _FORMAT,
        "name": name,
        "version": version,
        "source": source,
        "options": {option: _resolved_path(option, value) for option, value in data_options(options).items()},
        "inputs": {str(path): _input_digest(path, source == "files") for path in input_paths(options)},
        "splits": dict(splits),
        "validation_fraction": validation_fraction,
        "test_fraction": test_fraction,
        "split_seed": split_seed,
        "columns": dict(columns),
        "required": list(required),
        **({"video_library": resolve_library(video_library)} if columns.get("video") else {}),
        **({"on_duplicates": on_duplicates} if on_duplicates == "drop_from_train" else {}),
        **({"convert": convert} if convert != "auto" else {}),
        **({"box_form": box_form} if columns.get("box") else {}),
        **({"limits": limits} if (limits := budget.changed_limits()) else {}),
    }
    folder = data_dir.expanduser() / f"{name}-{digest(request)[:12]}"
    prepared, _ = _found(folder)  # without the lock, so that data in a folder that cannot be written can be used
    if prepared is None:
        with _locked(folder):
            prepared, changed = _found(folder)
            if prepared is None:
                if (folder / "manifest.json").exists():
                    log.warning(
                        "The prepared data in %s, or files they refer to, have changed or are damaged: preparing them "
                        "again from the source (what was noticed: %s). To change data, change their source, from which "
                        "this folder is made.",
                        folder, changed,
                    )  # fmt: skip
                with spared():
                    prepared = _make(folder, rows_of, options, request, needs_train)
    if needs_train:
        require_train(prepared.manifest["available"], prepared.manifest["counts"]["train"])
    _refuse_bad(prepared, on_bad_sample, max_bad_share)
    if on_duplicates == "error":
        _refuse_duplicates(prepared)
    return prepared


def still_prepared(folder: Path, fingerprint: str) -> Prepared | None:
    """The data that were prepared in a folder, if they are those with this fingerprint and unchanged."""
    prepared, _ = _found(folder)
    return prepared if prepared is not None and prepared.fingerprint == fingerprint else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.with_suffix(".lock"))
        lock.acquire()
    except OSError as error:
        raise UserError(
            f"paths.data={folder.parent} cannot be written: {error.strerror}. Set paths.data or VLMEXP_DATA."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _make(
    folder: Path, rows_of: Source, options: Mapping[str, Any], request: Mapping[str, Any], needs_train: bool
) -> Prepared:
    """Read the source, check every row and all media, split, and write the folder."""
    columns, seed = request["columns"], request["split_seed"]
    inputs = dict(options)
    if "media_columns" in inspect.signature(rows_of).parameters:
        inputs["media_columns"] = media_columns(columns)
    available = rows_of(**inputs)
    wanted = resolved_splits(available, request["splits"])
    if needs_train:
        require_train(list(available), wanted["train"] is not None)
    fractions = {split: request[f"{split}_fraction"] for split in ("validation", "test")}
    missing = {split: fraction for split, fraction in fractions.items() if wanted[split] is None}
    with writing(folder, "or set paths.data or VLMEXP_DATA to another place"), new_folder(folder) as temporary:
        store, convert = MediaStore(temporary), request.get("convert", "auto")
        box_form = request.get("box_form", "xywh")
        reading = Reading(request["name"], columns, request["required"], store, convert, box_form)
        scratch = temporary / "rows"
        read = {
            split: reading.rows(available[theirs], split, scratch)
            for split, theirs in wanted.items()
            if theirs is not None
        }
        files = verify(
            store.kinds, temporary, f"check media of {request['name']}", request.get("video_library", "auto")
        )
        keep = {split: reading.converted(rows, split) for split, rows in read.items()}
        keep = {split: reading.with_good_media(rows, keep[split], split, files) for split, rows in read.items()}
        _refuse_empty(request["name"], keep, reading.bad)
        contents = contents_of(files)
        parts = {split: Part(split, rows, shown(rows, columns, contents), keep[split]) for split, rows in read.items()}
        bare = {split: part.shown.without_media(part.mask) for split, part in parts.items()}
        division = divide(parts, missing, contents.names, seed, "on_duplicates" in request)
        outside = _write_lists(temporary, reading.bad, files, files_read(request["source"], options, wanted))
        counts = dict.fromkeys(SPLITS, 0) | {split: _write(part, temporary) for split, part in division.parts.items()}
        found = write_duplicates(temporary / "duplicates.jsonl", division.pairs, columns, contents)
        shutil.rmtree(scratch)
        manifest = {
            "request": request,
            "available": list(available),
            "split_rule": split_rule(wanted, fractions, seed),
            "counts": counts,
            "read": {split: int(kept.sum()) for split, kept in keep.items()},
            "without_media": bare,
            "bad": {split: dict(Counter(b["reason"] for b in reading.bad if b["split"] == split)) for split in read},
            "converted": reading.conversions.sentences(),
            "dropped_from_train": division.dropped,
            "duplicates": {split: others for split, others in found.items() if split != "train"},
            "near_duplicates": near_duplicates(division.parts, contents),
            "lists": {name: file_digest(temporary / name) for name in LISTS},
            "fingerprint": _fingerprint(temporary, outside),
        }
        write_json(temporary / "manifest.json", manifest)
    pa.default_memory_pool().release_unused()
    return Prepared(folder, manifest)


def _refuse_empty(name: str, keep: Mapping[str, np.ndarray], bad: Sequence[Mapping[str, Any]]) -> None:
    """Raise a UserError if there is nothing to train on, or, without a train split, nothing to evaluate."""
    needed = "train" if "train" in keep else next(iter(keep))
    if not keep[needed].any():
        first = f": every row of it is bad, the first by this: {bad[0]['error']}" if bad else "."
        raise UserError(f"dataset={name}: the {needed} split has no rows{first}")


def _refuse_bad(prepared: Prepared, on_bad_sample: str, max_bad_share: float) -> None:
    """Raise a UserError if there are rows that cannot be used and they are not to be left out, or too many are."""
    count = {split: sum(reasons.values()) for split, reasons in prepared.manifest["bad"].items()}
    bad = sum(count.values())
    if not bad:
        return
    name, read = prepared.manifest["request"]["name"], prepared.manifest["read"]
    share = {split: n / (n + read[split]) for split, n in count.items() if n}
    worst = max(share, key=share.__getitem__)
    first = read_jsonl(prepared.folder / "bad.jsonl")[0]["error"]
    listing = f"the first is in {first} All are listed in {prepared.folder / 'bad.jsonl'}"
    if on_bad_sample == "error":
        raise UserError(
            f"{bad} of {bad + sum(read.values())} rows of {name} cannot be used; {listing}. "
            "Mend them, or leave them out with dataset.on_bad_sample=skip."
        )
    if share[worst] > max_bad_share:
        raise UserError(
            f"{share[worst]:.1%} of the {worst} split of {name} cannot be used, more than "
            f"dataset.max_bad_share={max_bad_share}; {listing}."
        )


def _refuse_duplicates(prepared: Prepared) -> None:
    """Raise a UserError if a row of one split shows what a row of another shows."""
    listing = prepared.manifest["duplicates"]
    if not listing:
        return
    counts = "; ".join(
        f"{count['rows']:,} of {prepared.manifest['counts'][split]:,} {split} rows show what rows of {other} show"
        for split, others in listing.items()
        for other, count in others.items()
    )
    first = prepared.duplicates()[0]
    raise UserError(
        f"{prepared.manifest['request']['name']}: {counts}. The first is {first['id']}, which shows the same as "
        f"{first['other_id']} of {first['other_split']}. All are listed in {prepared.folder / 'duplicates.jsonl'}. "
        "Leave them in with dataset.on_duplicates=report, or take their like out of train with drop_from_train."
    )


def _write(part: Part, folder: Path) -> int:
    """Write the Arrow stream of a split; returns its number of rows."""
    with contextlib.ExitStack() as stack:
        file, writer, start = stack.enter_context(pa.OSFile(str(folder / f"{part.split}.arrow"), "wb")), None, 0
        for table in part.rows.tables():
            if writer is None:
                writer = stack.enter_context(pa.ipc.new_stream(file, table.schema))
            writer.write_table(table.filter(pa.array(part.mask[start : start + len(table)])))
            start += len(table)
    return int(part.mask.sum())


def _write_lists(
    folder: Path, bad: Sequence[Mapping[str, Any]], media: Mapping[Path, Verified], others: Sequence[Path]
) -> list[tuple[str, str | None]]:
    """Write bad.jsonl, pictures.jsonl, and referenced.jsonl with the files that are not in the folder.

    Returns:
        path and content of these.
    """
    write_jsonl(folder / "bad.jsonl", bad)
    good = ((path, file) for path, file in media.items() if file.error is None)
    write_jsonl(folder / "pictures.jsonl", (_picture(path, file) for path, file in good))
    outside = {path: file for path, file in media.items() if path.is_absolute()}
    outside |= {path: Verified(stamp(path), content(path), None) for path in others}
    known = [(str(path), file.sha256) for path, file in outside.items()]
    write_jsonl(folder / "referenced.jsonl", ({"path": path, "sha256": sha256} for path, sha256 in known))
    remember(folder, {str(path): file.stamp for files in (outside, media) for path, file in files.items()})
    return known


def _picture(path: Path, file: Verified) -> dict[str, Any]:
    """The line of a file in pictures.jsonl."""
    return {"path": str(path), "shows": file.shows.hex(), **({"size": file.size} if file.size else {})}


def _found(folder: Path) -> tuple[Prepared | None, str]:
    """The prepared data if they are there and, with every file that they refer to, what they were; or what is not."""
    if not (folder / "manifest.json").exists():
        return None, "a file is missing"
    try:
        manifest = read_json(folder / "manifest.json")
        lists = manifest.get("lists", ["bad.jsonl"])  # earlier versions kept their names only
        if not all((folder / name).exists() for name in lists):
            return None, "a file is missing"
        for name in lists if isinstance(lists, dict) else ():
            if file_digest(folder / name) != lists[name]:
                return None, name
        referenced = read_jsonl(folder / "referenced.jsonl")
        if _fingerprint(folder, [(file["path"], file["sha256"]) for file in referenced]) != manifest["fingerprint"]:
            return None, "the splits, or which files there are"
        hashes = {f"media/{path.name}": path.stem for path in (folder / "media").iterdir()}
        hashes |= {file["path"]: file["sha256"] for file in referenced}
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:  # gone, or not what it was
        return None, f"{type(error).__name__}: {error}"
    changed = first_changed(folder, hashes)
    return (Prepared(folder, manifest), "") if changed is None else (None, changed)


def _fingerprint(folder: Path, referenced: Sequence[tuple[str, str | None]]) -> str:
    """Hash of the splits, of the stored media's names (hashes of their content) and sizes, and of referenced files.

    Of these it takes path and content, so that a file with a new date and the same content is the same.
    """
    with os.scandir(folder / "media") as entries:
        media = sorted((entry.name, entry.stat().st_size) for entry in entries)
    splits = {path.name: file_digest(path) for path in folder.glob("*.arrow")}
    return digest({"splits": splits, "media": media, "referenced": referenced})


def _resolved_path(option: str, value: Any) -> Any:
    """A path absolute, so that one place has one name; anything else as it is."""
    if isinstance(value, str) and value and (option == "root" or Path(value).expanduser().exists()):
        return str(Path(value).expanduser().resolve())
    return value


def _input_digest(path: Path, is_table: bool) -> str:
    """The hash of a file's content, or of the names, sizes and times of change of all files of a folder."""
    if not path.is_dir():
        try:
            if is_table:
                require_readable(path, budget.most_bytes)
            return content_digest(path, budget.most_bytes)
        except ValueError as error:
            raise UserError(f"{path} cannot be read: {error}.") from None
        except Unopened as error:
            ways_out = {"too large": ": raise dataset.max_file_gib", "damaged": ""}
            way_out = ways_out.get(error.reason, ": name a file or a folder of data")
            raise UserError(f"{path} {error}{way_out}.") from None
    return digest([[str(file.relative_to(path)), state(file)] for file in _files(path)])


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(parent, name) for name in sorted(names))
