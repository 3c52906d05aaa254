"""stage=download: make the splits and their images, or find them made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmexp.config import Config
from vlmexp.data.example import MEDIA_ROLES
from vlmexp.data.examples import Examples
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.errors import UserError
from vlmexp.report import print_paths
from vlmexp.runs import Run


def prepared_data(config: Config, run: Run) -> Prepared:
    """Prepare the data set of the config and record in run.json what it is."""
    dataset = config.dataset
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
        tuple(column for role in MEDIA_ROLES if (column := dataset.columns.get(role))),
    )
    manifest = prepared.manifest
    before = run.record.get("data", {}).get("fingerprint", prepared.fingerprint)
    if before != prepared.fingerprint:
        raise UserError(
            f"{run.directory} was started on data with the fingerprint {before[:12]}, and {prepared.folder} now has "
            f"{prepared.fingerprint[:12]}: its results would mix two data sets. Start a new run."
        )
    run.update(
        data=run.record.get("data", {})
        | {
            "name": dataset.name,
            "folder": str(prepared.folder),
            "fingerprint": prepared.fingerprint,
            "counts": manifest["counts"],
            "split_rule": manifest["split_rule"],
        }
    )
    return prepared


def load_split(config: Config, prepared: Prepared, split: str) -> Examples:
    """The examples of a split as the config asks for them."""
    dataset = config.dataset
    limit = dataset.max_examples.get(split)
    return Examples(prepared, split, dataset.columns, dataset.metadata, limit, dataset.split_seed)


def download(config: Config, run: Run) -> dict[str, Any]:
    """Store the splits with their images under paths.data; a second call checks and reuses them."""
    with run.stage("download") as result:
        prepared = prepared_data(config, run)
        result["counts"] = prepared.manifest["counts"]
    print_paths({"prepared data": prepared.folder})
    return {"counts": prepared.manifest["counts"]}
