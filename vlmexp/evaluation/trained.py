"""The model of a training run: which run, its options, its data, its weights."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import PreTrainedModel, ProcessorMixin

from vlmexp import trust
from vlmexp.checks import checked
from vlmexp.config import Config
from vlmexp.data.example import Example
from vlmexp.data.options import data_options
from vlmexp.data.prepare import Prepared, still_prepared
from vlmexp.data.stage import load_split
from vlmexp.errors import UserError
from vlmexp.files import read_json
from vlmexp.models.adapter import load_adapter
from vlmexp.models.checkpoint import check_folder
from vlmexp.models.load import load_model, load_processor
from vlmexp.parts import model_source
from vlmexp.runs import Run, differences, finished_runs, read_config, require_run

LIMITS = ("max_length", "overlong")  # of the collator: they change no token of an example that fits
TRAINED_WITH = ("model", "collator", "peft")  # groups of options that belong to a trained model


def find_training_run(config: Config) -> Path:
    """The run named by `run=`, or the newest finished one that trained the same model on the same data set.

    Raises:
        UserError: there is none; the message lists what there is.
    """
    root = Path(config.paths.outputs)
    if config.run is not None:
        directory = Path(config.run).expanduser().resolve()
        record = require_run(directory, root)
        if not (directory / "model").is_dir():
            raise UserError(
                f"run={directory} has no trained model (its status is {record['status']}): finish its training."
            )
        return directory
    trained = [
        (str(record["stages"]["train"].get("started")), directory, read_config(directory))
        for folder in (root, Path(config.paths.multirun))
        for directory, record in finished_runs(folder, unfinished=True)
        if record["stages"].get("train", {}).get("status") == "done" and (directory / "model").is_dir()
    ]
    trained.sort(key=lambda item: item[0], reverse=True)
    wanted = (config.dataset.name, config.dataset.source, data_options(config.dataset.options))
    for _, directory, other in trained:
        data = (other["dataset"]["name"], other["dataset"]["source"], data_options(other["dataset"]["options"]))
        if other["model"]["id"] == config.model.id and data == wanted:
            return directory.resolve()
    listing = "; ".join(f"{d} ({o['model']['id']} on {o['dataset']['name']})" for _, d, o in trained[:5])
    raise UserError(
        f"There is no finished training run of {config.model.id} on {config.dataset.name} under {root}/. "
        + (
            f"There are: {listing}. Choose one with run=."
            if listing
            else "Run stage=train first, or name one with run=."
        )
    )


def as_trained(config: Config, source_run: Path, overrides: list[str]) -> Config:
    """The config with the options that belong to the trained model; limits of length may be given anew.

    Raises:
        UserError: `run=` is evaluated with other options, which the trained model's own would silently replace; or the
            training run's own name code, on nobody's word.
    """
    trained = config_of(source_run)
    _require_trust(config, trained, source_run)
    collator: dict[str, Any] = {}
    if trained.collator.system_prompt == trained.dataset.instruction:  # nobody's own words: each data set has its own
        collator["system_prompt"] = config.dataset.instruction
    if config.run is not None:
        given = {text.partition("=")[0].lstrip("+") for text in overrides}
        limits = {name: f"collator.{name}" for name in LIMITS if f"collator.{name}" in given}
        collator |= {name: getattr(config.collator, name) for name in limits}
        _refuse_other_options(config, trained, source_run, given - set(limits.values()))
    return dataclasses.replace(
        config,
        model=trained.model,
        collator=dataclasses.replace(trained.collator, **collator),
        peft=trained.peft,
        seed=trained.seed,
    )


def _require_trust(config: Config, trained: Config, source_run: Path) -> None:
    """Take of the training run what the command line has too, and what runs nothing; the rest on the user's word."""
    here, there = ({name: dataclasses.asdict(c)[name] for name in TRAINED_WITH} for c in (config, trained))
    taken = {option: value for option, (value, _) in differences(there, here, ignored=()).items()}
    trust.require_trust(trust.untrusted_options(taken), f"run={source_run}", config.trust_run)


def _refuse_other_options(config: Config, trained: Config, source_run: Path, given: Collection[str]) -> None:
    asked, had = ({name: dataclasses.asdict(c)[name] for name in TRAINED_WITH} for c in (config, trained))
    listing = "; ".join(
        f"{option} is {old!r} there and {new!r} here"
        for option, (old, new) in differences(had, asked).items()
        if any(f"{option}.".startswith(f"{name}.") for name in given)
    )
    if listing:
        raise UserError(f"run={source_run} is evaluated as it was trained: {listing}. Leave these options out.")


def check_data(config: Config, run: Run, prepared: Prepared, source_run: Path) -> list[str]:
    """Note it if the data to evaluate are not those of the training run, and how many examples it was trained on.

    Returns:
        The ids of the examples of other data that it was trained on.

    Raises:
        UserError: it was trained on some of a split that is taken out of the train split, and is to be new to it.
    """
    trained_on = read_json(source_run / "run.json")["data"]
    if prepared.fingerprint == trained_on["fingerprint"]:
        return []
    split, folder = config.evaluation.split, Path(trained_on["folder"])
    other = (
        f"{source_run} was trained on other data (fingerprint {trained_on['fingerprint'][:12]}) than these "
        f"({prepared.fingerprint[:12]})"
    )
    data = still_prepared(folder, trained_on["fingerprint"])
    if data is None:
        run.note_fallback(f"{other}. They are no longer in {folder}: it may have been trained on some of these.")
        return []
    had, here = data.shows(), prepared.shows()
    if not had:  # prepared by an older version: only names can be compared
        here = had
    trained = {
        name for example in load_split(config_of(source_run), data, "train") for name in _shown(example, data, had)
    }
    examples = load_split(config, prepared, split, config.evaluation.max_examples)
    known = [e.id for e in examples if not trained.isdisjoint(_shown(e, prepared, here))]
    share = f"{len(known)} of the {len(examples)} {split} examples"
    if known and split not in prepared.manifest["read"]:
        asked, given = ({**each.manifest["request"], "inputs": None, "format": None} for each in (data, prepared))
        listing = [
            f"{option} is {old!r} there and {new!r} here"
            for option, (old, new) in differences(asked, given, "dataset").items()
        ]
        raise UserError(
            f"{source_run} was trained on the images, videos or texts of {share}: this split is "
            f"{prepared.manifest['split_rule'][split]}, and {'; '.join(listing) or 'the source has changed'}. Evaluate "
            f"the data of that run, or a split of the source's own (dataset.splits.{split}); evaluation.split=train "
            "evaluates trained examples on purpose."
        )
    run.note_fallback(f"{other}: it was trained on the images, videos or texts of {share}.")
    return known if split != "train" else []


def _shown(example: Example, prepared: Prepared, shows: Mapping[str, str]) -> list[str]:
    """What an example's media show, whatever their names; of one without any, its text."""
    media = [prepared.name_of(path) for path in (*example.images, *example.videos)]
    return [shows.get(name, name) for name in media] or [f"{example.question_end}\n{example.answers}"]


def load_finetuned(config: Config, source_run: Path, run: Run) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model and processor as the training run left them in its `model/`.

    Raises:
        UserError: a file there is missing or no longer whole.
    """
    folder, record = source_run / "model", read_json(source_run / "run.json")
    check_folder(folder, record["stages"].get("train", {}).get("files", {}))
    source = model_source(config)
    processor = load_processor(dataclasses.replace(source, id=str(folder), revision=None), run.note_fallback)
    if config.peft.get("config_class") is None:
        whole = dataclasses.replace(source, id=str(folder), revision=None, random_init=False)
        return load_model(whole, run.note_fallback), processor
    # The commit that the adapter was trained on, whatever the branch holds by now.
    commit = record.get("model", {}).get("commit")
    source = dataclasses.replace(source, revision=commit or source.revision)
    base = load_model(source, run.note_fallback, config.seed)
    return load_adapter(base, folder), processor  # type: ignore[return-value]  # a PeftModel generates like its model


def config_of(directory: Path) -> Config:
    """The configuration of a run directory; its values are what they are, and nothing in them is resolved any more."""
    return checked(OmegaConf.create(_literal(read_config(directory))))


def _literal(value: Any) -> Any:
    """A value in which OmegaConf finds nothing to resolve, as an environment variable of whoever reads it."""
    if isinstance(value, dict):
        return {name: _literal(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
