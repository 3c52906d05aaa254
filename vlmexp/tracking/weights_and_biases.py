"""Weights & Biases: scalars over steps, the evaluations in the summary, and predictions with their images."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmexp.confidential import redacted
from vlmexp.tracking.tracker import Tracker, evaluation_scalars, scalars

STEP = "train/global_step"
IMAGE_SIZE = 512  # pixels: longer side of an image in the table
LOGIN_S = 30.0  # how long a question for a key may wait, where there is a terminal
FINISH_S = 60  # for uploads at the end, which a preempted job has to leave time for; `wandb sync` sends the rest


@dataclass(frozen=True)
class Identity:
    """What tells a run from others, in the words of wandb.init; kept so that later attempts continue the same run."""

    id: str
    name: str
    group: str | None
    job_type: str


class WandbRun(Tracker):
    """A run of Weights & Biases, new or continued.

    Args:
        mode: online, offline or disabled.
        folder: where the client keeps its files.
        config: added to the run's configuration.

    Attributes:
        url: where it can be seen, if it is online.
        directory: where the client keeps this attempt, relative to `folder` if it is in it; None if it keeps nothing.
    """

    def __init__(
        self,
        identity: Identity,
        mode: str,
        project: str,
        entity: str | None,
        folder: Path,
        config: Mapping[str, Any],
    ) -> None:
        import wandb

        self._folder, self._environment = folder, contextlib.ExitStack()
        # Images of tables would else stay in the home directory, out of reach of a `wandb sync` elsewhere.
        self._environment.enter_context(
            environment(WANDB_DATA_DIR=str(folder / "wandb"), WANDB_FINISH_TIMEOUT=str(FINISH_S), WANDB_SILENT="true")
        )
        arguments = sys.argv
        sys.argv = [redacted(text) for text in arguments]  # which W&B keeps
        try:
            self._run = wandb.init(
                id=identity.id,
                name=identity.name,
                group=identity.group,
                job_type=identity.job_type,
                project=project,
                entity=entity,
                dir=str(folder),
                mode=mode,  # type: ignore[arg-type]
                resume="allow",
                settings=wandb.Settings(
                    console="off", silent=True, disable_git=True, save_code=False, login_timeout=LOGIN_S
                ),
            )
        except BaseException:
            stop_service()
            self._environment.close()
            raise
        finally:
            sys.argv = arguments
        self._run.config.update(dict(config), allow_val_change=True)
        self._run.define_metric(STEP)
        self._run.define_metric("*", step_metric=STEP)
        self.url = self._run.url if mode == "online" else None
        self.directory = None if mode == "disabled" else self._run_directory()

    def log(self, line: Mapping[str, Any]) -> None:
        self._run.log({**scalars(line), STEP: line["step"]})

    def evaluated(self, name: str, result: Mapping[str, Any], step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._run.summary.update(evaluation_scalars(name, result))
        if rows:
            self._run.log({f"{name}/predictions": predictions_table(rows), STEP: step})

    def _run_directory(self) -> str:
        path = Path(self._run.dir).parent
        return str(path.relative_to(self._folder) if path.is_relative_to(self._folder) else path)

    def close(self, succeeded: bool) -> None:
        try:
            self._run.finish(exit_code=0 if succeeded else 1)
        except Exception:
            stop_service()
            raise
        finally:
            self._environment.close()


def stop_service() -> None:
    """End the client's own process after a failure: it would keep the run's id, or it is broken for the next run."""
    import wandb

    with contextlib.suppress(Exception):
        wandb.teardown()


def predictions_table(rows: Sequence[Mapping[str, Any]]) -> Any:
    """A table with a row for each prediction: id, first image, its other fields, and a column for each metric."""
    import wandb

    plain = [{name: value for name, value in row.items() if name not in ("images", "scores")} for row in rows]
    columns = list(dict.fromkeys(name for row in plain for name in row))
    metrics = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    table = wandb.Table(columns=["image", *columns, *metrics], allow_mixed_types=True)
    for row, texts in zip(rows, plain, strict=True):
        image = row["images"][0](IMAGE_SIZE) if row["images"] else None
        cells = [_cell(texts.get(name)) for name in columns]
        table.add_data(image and wandb.Image(image), *cells, *(row["scores"].get(name) for name in metrics))
    return table


def _cell(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


@contextlib.contextmanager
def environment(**values: str) -> Iterator[None]:
    """Set environment variables that are not set already for the length of the block."""
    ours = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name in ours:
            os.environ.pop(name, None)
