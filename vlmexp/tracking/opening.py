"""Opening what tracks a run, once a process, and telling it the results of evaluations."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vlmexp.confidential import redacted, redacted_values
from vlmexp.config import Config
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.tracking.board import Board
from vlmexp.tracking.tracker import Guarded, Tracker
from vlmexp.tracking.weights_and_biases import Identity, WandbRun


@contextlib.contextmanager
def tracked(config: Config, run: Run, trained_by: Path | None = None) -> Iterator[None]:
    """Track the run as `config.tracking` says for the length of the block; within another such block, go on with it.

    Whatever fails here is noted in run.json and does not fail the run.

    Args:
        trained_by: the run directory whose model is looked at, if it is not this one: its W&B run is continued.
    """
    if run.tracker.is_open or config.tracking.report_to == "none" or not run.is_main:
        yield
        return
    run.tracker = _opened(config, run, trained_by)
    succeeded = False
    try:
        yield
        succeeded = True
    finally:
        run.tracker.close(succeeded)
        run.tracker = Tracker()


def track_evaluation(
    config: Config, run: Run, name: str, picture: Callable[[Path, int], Any], trained_by: Path | None = None
) -> None:
    """Send what an evaluation of this run has written.

    Args:
        picture: reads an image at so many pixels on the longer side; None: it cannot be read.
        run: or the part of one that is about a data set of its suite, whose name stands before the metrics.
        name: how its files begin: base_vlm_model or finetuned_vlm_model.
        trained_by: as for `tracked`; also the run whose steps count.
    """
    if config.tracking.report_to == "none" or not run.is_main:
        return
    result = read_json(run.path("evaluation", f"{name}_evaluation.json"))
    rows = read_jsonl(run.path("evaluation", f"{name}_predictions.jsonl"))
    count = min(config.tracking.predictions, len(rows))
    folder = Path(run.record["data"]["folder"])
    sample = [
        row | {"images": [functools.partial(picture, folder / image) for image in row["images"]]}
        for row in random.Random(config.seed).sample(rows, count)
    ]
    trained = read_json(trained_by / "run.json")["stages"].get("train", {}) if trained_by else {}
    with tracked(config, run.whole, trained_by):
        run.whole.tracker.evaluated(f"{run.name}{name.partition('_')[0]}", result, trained.get("steps", 0), sample)


def _opened(config: Config, run: Run, trained_by: Path | None) -> Tracker:
    tool = config.tracking.report_to

    def failed(error: Exception) -> None:
        text = " ".join(redacted(str(error)).split())
        with contextlib.suppress(OSError):  # on a full disk it is kept with whatever is written next
            run.note_fallback(
                f"tracking.report_to={tool} failed ({type(error).__name__}: {text}): the run goes on, and its metrics "
                "are in its directory only."
            )

    try:
        if tool == "wandb":
            return Guarded(_wandb_run(config, run, trained_by), failed)
        run.update(tracking={"tool": "tensorboard", "directories": ["tensorboard"]})
        return Guarded(Board(run.path("tensorboard"), shown_config(config, run)), failed)
    except Exception as error:
        failed(error)
        return Guarded(Tracker(), failed)


def _wandb_run(config: Config, run: Run, trained_by: Path | None) -> WandbRun:
    joins = trained_by is not None and trained_by != run.directory
    source = read_json(trained_by / "run.json") if joins and trained_by else run.record
    known = source.get("tracking", {})
    names = {item.name for item in dataclasses.fields(Identity)}
    if known.get("tool") == "wandb":
        identity = Identity(**{name: known[name] for name in names})
    else:
        joins = False
        identity = identity_of(config, run)
    values = {"evaluated_in": str(run.directory)} if joins else shown_config(config, run)
    mode = config.tracking.mode or ("online" if "WANDB_API_KEY" in os.environ else "offline")

    def start(mode: str) -> WandbRun:
        tracking = config.tracking
        return WandbRun(identity, mode, tracking.project, tracking.entity, run.directory, values)

    try:
        tracker = start(mode)
    except Exception as error:
        if mode != "online":
            raise
        text = " ".join(redacted(str(error)).split())
        run.note_fallback(f"W&B cannot be reached ({text}): tracking goes on offline; `wandb sync` uploads it.")
        tracker = start("offline")
    directories = [*run.record.get("tracking", {}).get("directories", []), tracker.directory]
    link = {"url": tracker.url} if tracker.url else {}
    run.update(
        tracking={
            "tool": "wandb",
            **dataclasses.asdict(identity),
            **link,
            "directories": list(dict.fromkeys(filter(None, directories))),
        }
    )
    return tracker


def identity_of(config: Config, run: Run) -> Identity:
    """A run's own id; of a point of a sweep the sweep's directory as group, and the point's number in the name."""
    sweep = run.directory.parent
    in_sweep = any((sweep / name).exists() for name in ("points.jsonl", "multirun.yaml"))
    given = config.tracking.name
    name = f"{given or sweep.name}/{run.directory.name}" if in_sweep else given or run.record["id"]
    # W&B takes at most 64 characters, and what makes the id unique stands at its end.
    own_id = re.sub(r"[^\w.-]", "-", run.record["id"])[-64:]
    return Identity(id=own_id, name=redacted(name), group=sweep.name if in_sweep else None, job_type=config.stage)


def shown_config(config: Config, run: Run) -> dict[str, Any]:
    """The configuration without secrets, and the run directory."""
    values = redacted_values(dataclasses.asdict(config))
    return {**values, "run_directory": str(run.directory), "run_id": run.record["id"]}
