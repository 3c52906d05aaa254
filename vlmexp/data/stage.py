"""stage=download: make the splits and their images, or find them made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexp.config import EVALUATING, NEEDS_TRAIN, Config, required_roles, used_columns
from vlmexp.data.example import check_columns
from vlmexp.data.examples import Examples
from vlmexp.data.limits import Limits, set_limits
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.data.sources import known_columns, named_splits
from vlmexp.data.splits import require_train, resolved_splits
from vlmexp.data.video_readers import resolve_library
from vlmexp.errors import UserError
from vlmexp.files import read_jsonl, write_jsonl
from vlmexp.report import print_paths
from vlmexp.runs import Run
from vlmexp.suites import members


def prepared_data(config: Config, run: Run) -> Prepared:
    """Prepare the data set of the config and record in run.json what it is."""
    dataset = config.dataset
    limit_decoding(config)
    prepared = prepare(
        Path(config.paths.data),
        dataset.name,
        dataset.version,
        dataset.source,
        dataset.options,
        dataset.splits,
        dataset.validation_fraction,
        dataset.test_fraction,
        dataset.split_seed,
        used_columns(config),
        required_roles(config),
        dataset.on_bad_sample,
        dataset.max_bad_share,
        config.collator.video_processing.frame_extraction.library,
        dataset.on_duplicates,
        dataset.convert,
        needs_train=config.stage in NEEDS_TRAIN,
        box_form=dataset.box_form,
    )
    manifest = prepared.manifest
    before = run.record.get("data", {}).get("fingerprint", prepared.fingerprint)
    if before != prepared.fingerprint:
        raise UserError(
            f"{run.directory} was started on data with the fingerprint {before[:12]}, and {prepared.folder} now has "
            f"{prepared.fingerprint[:12]}: its results would mix two data sets. Start a new run."
        )
    left_out = {split: reasons for split, reasons in manifest["bad"].items() if reasons}
    if left_out:
        counts = "; ".join(
            f"{split}: " + ", ".join(f"{n} {reason}" for reason, n in reasons.items())
            for split, reasons in left_out.items()
        )
        run.note_fallback(f"Rows that cannot be used are left out of {dataset.name} ({counts}); see bad.jsonl.")
        if run.is_main:
            write_jsonl(run.path("bad.jsonl"), read_jsonl(prepared.folder / "bad.jsonl"))
    for sentence in manifest["converted"]:
        run.note_fallback(sentence)
    for sentence in duplicates_in_words(prepared):
        run.note_fallback(
            f"{sentence} See duplicates.jsonl; dataset.on_duplicates=drop_from_train leaves none in train."
        )
    if (manifest["duplicates"] or manifest["dropped_from_train"]) and run.is_main:
        write_jsonl(run.path("duplicates.jsonl"), prepared.duplicates())
    run.update(
        data=run.record.get("data", {})
        | {
            "name": dataset.name,
            "folder": str(prepared.folder),
            "fingerprint": prepared.fingerprint,
            "counts": manifest["counts"],
            "split_rule": manifest["split_rule"],
            "left_out": left_out,
            "without_media": manifest["without_media"],
            "converted": manifest["converted"],
            "duplicates": manifest["duplicates"],
            "dropped_from_train": manifest["dropped_from_train"],
            "near_duplicates": manifest["near_duplicates"],
            **({"video_library": _video_library(config)} if "video" in used_columns(config) else {}),
        }
    )
    return prepared


def check_source(config: Config) -> None:
    """Raise a UserError for files, splits and columns that the source has not; reads at most the first row of each."""
    dataset = config.dataset
    available = named_splits(dataset.source, dataset.options)
    if available is None:
        return
    wanted = resolved_splits(available, dataset.splits)
    if config.stage in NEEDS_TRAIN:
        require_train(available, wanted["train"] is not None)
    split = config.evaluation.split
    fraction = {"validation": dataset.validation_fraction, "test": dataset.test_fraction}.get(split, 0.0)
    if config.stage in EVALUATING and wanted[split] is None and not fraction:
        raise UserError(
            f"evaluation.split={split}: the source has no such split (it has {', '.join(available)}), and none is "
            f"taken out of train: set dataset.{split}_fraction above 0, or choose another split."
        )
    limit_decoding(config)  # a table is read within them
    columns = {role: column for role, column in used_columns(config).items() if "." not in column}
    for name, found in known_columns(dataset.source, dataset.options).items():
        if found and name in wanted.values():
            check_columns(columns, [*dataset.metadata, *dataset.kept], found, name)


def limit_decoding(config: Config) -> None:
    """What media may cost from here on: as the data set says that they are of."""
    dataset = config.dataset
    set_limits(Limits(dataset.decode_memory_mib, dataset.decode_timeout_s, dataset.max_file_gib))


def duplicates_in_words(prepared: Prepared) -> list[str]:
    """A sentence for each two splits of the source that share what they show."""
    return [
        f"{found['rows']:,} of {prepared.manifest['counts'][split]:,} {split} questions are about "
        f"{prepared.shown_kind} of the {other} split, {found['same_question']:,} of them the same questions."
        for split, others in prepared.manifest["duplicates"].items()
        for other, found in others.items()
    ]


def look_alikes_in_words(prepared: Prepared) -> list[str]:
    """A sentence for each two splits with pictures that look the same without being so."""
    return [
        f"{found['pictures']:,} pictures of the {split} split look like one of the {other} split without being the "
        f"same, for example {' and '.join(found['example'])}."
        for split, others in prepared.manifest["near_duplicates"].items()
        for other, found in others.items()
    ]


def load_split(config: Config, prepared: Prepared, split: str, limit: int | None = None) -> Examples:
    """The examples of a split as the config asks for them; `limit`: at most so many, instead of the data set's own."""
    dataset = config.dataset
    return Examples(
        prepared,
        split,
        used_columns(config),
        [*dataset.metadata, *dataset.kept],
        limit or dataset.max_examples.get(split),
        dataset.split_seed,
        answer_seed=config.seed if split == "train" and dataset.train_answer == "sampled" else None,
    )


def _video_library(config: Config) -> str:
    return resolve_library(config.collator.video_processing.frame_extraction.library)


def download(config: Config, run: Run) -> dict[str, Any]:
    """Store the splits with their images under paths.data, a suite's too; a second call checks and reuses them."""
    with run.stage("download") as result:
        prepared = prepared_data(config, run)
        result["counts"] = prepared.manifest["counts"]
    for each, part in members(config, run):
        with part.stage("download") as result, part.about():
            result["counts"] = prepared_data(each, part).manifest["counts"]
    for sentence in look_alikes_in_words(prepared):
        print(f"  {sentence}")
    print_paths({"prepared data": prepared.folder})
    return {"counts": prepared.manifest["counts"]}
