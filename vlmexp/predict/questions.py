"""What is asked: a split of the data set, or what somebody has typed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from vlmexp.config import MEDIA, Config
from vlmexp.data.example import Example
from vlmexp.data.limits import Limits, set_limits
from vlmexp.data.prepare import Prepared
from vlmexp.data.splits import UnknownSplit
from vlmexp.data.stage import load_split, prepared_data
from vlmexp.errors import UserError, closest
from vlmexp.files import digest, read_jsonl
from vlmexp.predict.media import Named, check_header, damaged, left_out, named_files, question_about
from vlmexp.predict.submission import Id, check_column, server_ids
from vlmexp.runs import Run

HELD_AS = "test"  # our name for the split that is asked


@dataclass(frozen=True)
class Questions:
    """Questions without answers.

    Attributes:
        config: how they are put.
        fingerprint: of all that they show and say.
        failed: id -> what is wrong, of those that cannot be asked.
        ids: how the test server calls them, in their order; None: no file is written for one.
        prepared: the data that they are from; None: they were typed.
    """

    config: Config
    examples: Sequence[Example]
    fingerprint: str
    failed: Mapping[str, str] = field(default_factory=dict)
    ids: list[Id] | None = None
    prepared: Prepared | None = None

    def name_of(self, path: Path) -> str:
        """How a file is named in the predictions."""
        return str(path) if self.prepared is None else self.prepared.name_of(path)


def kind_typed(config: Config) -> str | None:
    """Whether an image or a video is named on the command line."""
    return next((kind for kind in MEDIA if getattr(config, kind) is not None), None)


def limit_decoding(config: Config) -> None:
    """Set what a file may cost."""
    dataset = config.dataset
    set_limits(Limits(dataset.decode_memory_mib, dataset.decode_timeout_s, dataset.max_file_gib))


def check_typed(config: Config, kind: str) -> Named:
    """The files that are named, of one question after a look at how they begin.

    Raises:
        UserError: they are not there, are no media of this kind, or the model takes none of it.
    """
    limit_decoding(config)
    named = named_files(kind, getattr(config, kind))
    for path in named.paths if len(named.files) == 1 else ():
        check_header(kind, path, video_library(config))
    return named


def video_library(config: Config) -> str:
    """The library that reads videos."""
    return config.collator.video_processing.frame_extraction.library


def typed_questions(config: Config, kind: str, note: Callable[[str], None]) -> Questions:
    """What the command line asks about each file, about several together, or about each file of a folder.

    Args:
        note: is told of files in the folder that are of no such kind.

    Raises:
        UserError: a file cannot be decoded, and dataset.on_bad_sample does not leave it out.
    """
    named, question = check_typed(config, kind), config.question or ""
    if sentence := left_out(kind, named):
        note(sentence)
    bad, content = damaged(kind, named.paths, video_library(config))
    failed = {id: error for id, files in named.files.items() if (error := _first(bad, files)) is not None}
    if failed:
        _refuse_damaged(config, failed, len(named.files))
    in_conversation = bool(config.dataset.columns.get("messages"))
    examples = [
        question_about(id, kind, files, question, in_conversation)
        for id, files in named.files.items()
        if id not in failed
    ]
    fingerprint = digest([kind, content, [str(path) for path in named.paths], list(named.files), question])
    return Questions(showing(config, kind), examples, fingerprint, failed)


def split_questions(config: Config, run: Run) -> Questions:
    """The questions of predict.split, in its order.

    Raises:
        UserError: the source has no such split, or the ids of the test server are not there.
    """
    split, form = config.predict.split, config.dataset.submission
    assert split is not None
    asked = unlabelled(config, split)
    try:
        prepared = prepared_data(asked, run)
    except UnknownSplit as error:
        there = ", ".join(error.available)
        raise UserError(
            f"predict.split={split}: dataset={config.dataset.name} has no split of this name"
            f"{closest(split, error.available) or '.'} It has: {there}."
        ) from None
    table = _columns(prepared)
    metadata, kept = ([c for c in names if c in table] for names in (asked.dataset.metadata, asked.dataset.kept))
    asked = dataclasses.replace(asked, dataset=dataclasses.replace(asked.dataset, metadata=metadata, kept=kept))
    examples = load_split(asked, prepared, HELD_AS, config.predict.max_examples)
    failed = {row["id"]: row["error"] for row in read_jsonl(prepared.folder / "bad.jsonl")}
    ids = None
    if form is not None and len(examples) < examples.population:
        run.note_fallback(f"predict.max_examples leaves questions out: no file for dataset.submission={form}.")
    elif form is not None:
        _refuse_incomplete(form, failed)
        column = config.dataset.submission_id
        check_column(column, table, split)
        ids = server_ids(form, _values(prepared, column), column)
    return Questions(asked, examples, prepared.fingerprint, failed, ids, prepared)


def unlabelled(config: Config, split: str) -> Config:
    """The config with this split of the source as the only one, and nothing known of its answers."""
    dataset = dataclasses.replace(
        config.dataset,
        splits={"train": None, "validation": None, HELD_AS: split},
        columns={**config.dataset.columns, "answer": None},
        required=[role for role in config.dataset.required if role != "answer"],
        max_examples={},
    )
    return dataclasses.replace(config, dataset=dataset)


def showing(config: Config, kind: str) -> Config:
    """The config with messages that show media of this kind, where they showed those of the other.

    Raises:
        UserError: the model takes none.
    """
    if kind not in config.model.media:
        takes = " and ".join(config.model.media) or "no media"
        raise UserError(
            f"{kind}={getattr(config, kind)}: {config.model.id} takes {takes} (model.media) and no {kind}. Choose "
            "another model."
        )
    messages = config.collator.messages
    if any(part.type == kind for message in messages for part in message.content):
        return config
    messages = [
        dataclasses.replace(
            message,
            content=[dataclasses.replace(part, type=kind) if part.type in MEDIA else part for part in message.content],
        )
        for message in messages
    ]
    return dataclasses.replace(config, collator=dataclasses.replace(config.collator, messages=messages))


def _refuse_damaged(config: Config, failed: Mapping[str, str], count: int) -> None:
    dataset, first = config.dataset, next(iter(failed.values()))
    said = f"{len(failed)} of {count} questions cannot be asked. {first}"
    if dataset.on_bad_sample == "error":
        others = " Mend it, or ask the others with dataset.on_bad_sample=skip." if len(failed) < count else ""
        raise UserError(f"{said}{others}")
    if len(failed) == count or len(failed) > dataset.max_bad_share * count:
        raise UserError(f"{said} These are more than dataset.max_bad_share={dataset.max_bad_share}.")


def _refuse_incomplete(form: str, failed: Mapping[str, str]) -> None:
    """A test server takes an answer to every question of its split, or none at all."""
    if failed:
        raise UserError(
            f"dataset.submission={form} takes an answer to every question, and {len(failed)} of the split cannot be "
            f"asked: {next(iter(failed.values()))} Mend them, or set dataset.submission=null to write no file for it."
        )


def _first(bad: Mapping[Path, str], files: Sequence[Path]) -> str | None:
    return next((bad[path] for path in files if path in bad), None)


def _columns(prepared: Prepared) -> list[str]:
    with pa.memory_map(str(prepared.arrow(HELD_AS))) as file:
        return list(pa.ipc.open_stream(file).schema.names)


def _values(prepared: Prepared, column: str) -> list[object]:
    """[rows] the values of a column."""
    with pa.memory_map(str(prepared.arrow(HELD_AS))) as file:
        values: list[object] = pa.ipc.open_stream(file).read_all()[column].to_pylist()
    return values
