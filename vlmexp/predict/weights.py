"""Whose answers are given: a run's adapter, its merged model, or a model as it is."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from vlmexp.config import Config
from vlmexp.errors import UserError
from vlmexp.evaluation.trained import as_trained, find_training_run, load_finetuned
from vlmexp.files import read_json
from vlmexp.models.checkpoint import fingerprint
from vlmexp.models.export import load_stored_processor, stored_source
from vlmexp.models.load import ModelSource, Note, check_model, load_model, load_processor
from vlmexp.parts import model_source
from vlmexp.runs import Run

FOLDERS = {"adapter": "model", "merged": "deployment_model"}  # in the run that made them


@dataclass(frozen=True)
class Weights:
    """A model that is not loaded yet.

    Attributes:
        config: with the options that belong to a trained model.
        kind: adapter, merged or base.
        run: which made it; None: a model as it is.
        record: of that run.
    """

    config: Config
    kind: str
    run: Path | None
    record: dict[str, Any]

    def __str__(self) -> str:
        if self.run is None:
            return self.config.model.id
        what = {"adapter": "the trained model", "merged": "the merged model", "base": "the base model"}[self.kind]
        return f"{what} of {self.run}"

    @property
    def source(self) -> ModelSource:
        """The base model, at the commit on which it was trained, or the merged one."""
        base = model_source(self.config)
        if self.run is not None and self.kind == "merged":
            return stored_source(self.run / FOLDERS["merged"], base)
        return dataclasses.replace(base, revision=self.record.get("model", {}).get("commit") or base.revision)

    @property
    def folder(self) -> Path | None:
        """Where a trained model lies."""
        return self.run / FOLDERS[self.kind] if self.run is not None and self.kind in FOLDERS else None

    def processor(self, note: Note) -> ProcessorMixin:
        """The model's processor, after all that can be known of the model without reading weights."""
        source = self.source
        if self.kind == "adapter":
            return load_processor(dataclasses.replace(source, id=str(self.folder), revision=None), note)
        processor = check_model(source, note)
        loading = self.record.get("export", {}).get("loading", {}).get("deployment_model", {})
        backend = loading.get("image_backend") if self.kind == "merged" else None
        return processor if backend is None else load_stored_processor(source, backend, note)

    def load(self, run: Run) -> PreTrainedModel:
        """The model; raises a UserError if a file of it is missing or no longer whole."""
        if self.kind == "adapter":
            assert self.run is not None
            return load_finetuned(self.config, self.run, run)[0]
        return load_model(self.source, run.note_fallback, self.config.seed)

    def fingerprints(self) -> list[str]:
        """What tells the checkpoints that the model is made of from any others."""
        source = self.source
        of_base = [] if self.kind == "merged" else [fingerprint(source.location, source.revision)]
        return of_base if self.folder is None else [*of_base, fingerprint(str(self.folder), None)]


def check_weights(config: Config) -> None:
    """Raise a UserError if the run has not made what is asked for, or there is no such run."""
    if config.run is None:
        return
    kind, directory = kind_of(config), find_training_run(config)
    if kind == "merged" and not (directory / FOLDERS[kind]).is_dir():
        raise UserError(
            f"predict.weights=merged: {directory} has no {FOLDERS[kind]}/. Make it with stage=export run={directory}, "
            "or take predict.weights=adapter."
        )


def kind_of(config: Config) -> str:
    """Which weights are asked for."""
    return config.predict.weights or ("base" if config.run is None else "adapter")


def find_weights(config: Config, overrides: list[str]) -> Weights:
    """The weights that are asked for, with the options of their training.

    Args:
        overrides: of the run that asks.

    Raises:
        UserError: other options are given for a trained model, or it waits for the user's word.
    """
    check_weights(config)
    if config.run is None:
        return Weights(config, "base", None, {})
    directory = find_training_run(config)
    trained = as_trained(config, directory, overrides)
    return Weights(trained, kind_of(config), directory, read_json(directory / "run.json"))
