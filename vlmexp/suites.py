"""Suites: several data sets beside a run's own, each asked and scored as if it were evaluated by itself.

A data set of a suite is what its file in conf/dataset says. Its results, and what is known of its data, lie in a folder
of its own, laid out as the run's:

suite/textvqa/evaluation/   base_vlm_model_evaluation.json …
suite/textvqa/bad.jsonl     rows of it that cannot be used
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict

from vlmexp import confidential
from vlmexp.checks import checked
from vlmexp.config import NEEDS_TRAIN, Config, Dataset
from vlmexp.errors import UserError, closest
from vlmexp.runs import Run, differences, without_running

FOLDER = "suite"
EVALUATING = ("eval_base", "eval_finetuned")  # stages in which a suite stands in the place of the run's own data set
_NAME = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)*")


def checked_with_members(composed: DictConfig, search_path: Sequence[str] | None) -> Config:
    """A composed config, checked, with the data sets that it names beside its own; Hydra has to be initialised.

    What the command line or a preset says of `dataset` is about the run's own, and is not taken over.

    Args:
        search_path: further folders of groups, `hydra.searchpath`.

    Raises:
        UserError: an option is refused; there is no such data set, or it does not go with the rest of the config.
    """
    config = checked(composed)
    named = dict.fromkeys(config.evaluation.suite or [], "evaluation.suite")
    if config.stage in NEEDS_TRAIN and (name := watched_name(config)) is not None:
        named.setdefault(name, "train.metric_for_best_model")
    loader, folders = GlobalHydra.instance().config_loader(), tuple(search_path or ())
    members = {name: _member(loader, name, option, composed, folders) for name, option in named.items()}
    return dataclasses.replace(config, members=members)


def _member(loader: ConfigLoader, name: str, option: str, composed: DictConfig, folders: tuple[str, ...]) -> Dataset:
    """A data set as it is in the place of the run's own."""
    alone = composed.copy()
    try:
        with open_dict(alone):
            alone.dataset = _of_file(loader, name, folders).copy()
            alone.stage, alone.members, alone.evaluation.suite = "eval_base", {}, None
        confidential.refuse((f"dataset.{key}", value) for key, value in confidential.options(alone.dataset))
        found = checked(alone)
        splits, split = found.dataset.splits, found.evaluation.split
        if splits.get(split) is None and splits.get("train") is None:
            raise UserError(
                f"it has no {split} split (dataset.splits.{split} is null, and there is no train split to take one out "
                f"of). Name one in its file, or another with evaluation.split."
            )
    except UserError as error:
        own = f" (dataset.* is here what the file of {name} says; change it in one of yours.)"
        raise UserError(f"{option} names {name}: {error}{own if 'dataset.' in str(error) else ''}") from None
    return found.dataset


def _of_file(loader: ConfigLoader, name: str, folders: tuple[str, ...]) -> DictConfig:
    """The node `dataset` with nothing in it but what the file says."""
    known: Sequence[str] = loader.get_group_options("dataset")
    if _NAME.fullmatch(name):
        try:
            found, usual = _composed(loader, folders, name), _composed(loader, folders)
        except MissingConfigException as error:
            if error.missing_cfg_file != f"dataset/{name}":
                raise
            known = error.options or known
        else:
            if others := [str(group) for group in found if _written(found, group) != _written(usual, group)]:
                raise UserError(
                    f"its file sets {' and '.join(others)} as well, which a run has once: evaluate it by itself, with "
                    f"dataset={name}."
                )
            return found.dataset  # type: ignore[no-any-return]
    raise UserError(f"there is no data set of this name{closest(name, known) or '.'} There are: {', '.join(known)}.")


@lru_cache(maxsize=256)
def _composed(loader: ConfigLoader, folders: tuple[str, ...], dataset: str | None = None) -> DictConfig:
    """All defaults, with a data set or with the usual one.

    Args:
        loader: Hydra's, which knows the folders of the command; with another one files are read anew.
    """
    choice = [] if dataset is None else [f"dataset={_quoted(dataset)}"]
    return hydra.compose("config", [f"hydra.searchpath=[{','.join(map(_quoted, folders))}]", *choice])


def _written(config: DictConfig, group: Any) -> Any:
    """A node beside the data set as it is written; a recipe for training may belong to the data set."""
    node = config._get_node(group) if group not in ("dataset", "train") else None
    return OmegaConf.to_container(node, resolve=False) if isinstance(node, DictConfig) else None


def _quoted(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()


def watched_name(config: Config) -> str | None:
    """The data set that `train.metric_for_best_model=NAME/METRIC` names, if it names one."""
    return str(config.train.get("metric_for_best_model") or "").removeprefix("eval_").rpartition("/")[0] or None


def watched(config: Config) -> tuple[Config, str | None]:
    """The config of the data set that is answered during training, and the wanted metric without its name.

    Raises:
        UserError: the loss is wanted of a data set that is answered and has none.
    """
    wanted = config.train.get("metric_for_best_model")
    if (name := watched_name(config)) is None:
        return config, wanted
    metric = str(wanted).rpartition("/")[2]
    if metric == "loss":
        raise UserError(f"train.metric_for_best_model={wanted}: {name} is answered, and has no loss: name a metric.")
    return of_member(config, name), metric


def of_member(config: Config, name: str) -> Config:
    """The config with which a data set that is named beside the run's own is evaluated by itself."""
    dataset, collator = config.members[name], config.collator
    if collator.system_prompt == config.dataset.instruction:  # nobody's own words: each data set has its own
        collator = dataclasses.replace(collator, system_prompt=dataset.instruction)
    evaluation = dataclasses.replace(config.evaluation, suite=None)
    return dataclasses.replace(
        config, stage="eval_base", dataset=dataset, collator=collator, evaluation=evaluation, members={}
    )


def members(config: Config, run: Run) -> list[tuple[Config, Run]]:
    """Each data set of the suite: the config with which, and the part of the run in which, it is evaluated."""
    return [(of_member(config, name), Member(run, name, config)) for name in config.evaluation.suite or []]


def evaluated(config: Config, run: Run) -> list[tuple[Config, Run]]:
    """All that a run evaluates: its own data set, unless a suite stands in its place, and those of the suite."""
    own = [] if config.evaluation.suite and config.stage in EVALUATING else [(config, run)]
    return [*own, *members(config, run)]


class Member(Run):
    """The part of a run that is about one data set of its suite: a folder of its own, and its own place in run.json.

    Raises:
        UserError: the run has begun with this data set when its file said something else.
    """

    def __init__(self, run: Run, name: str, config: Config) -> None:
        dataset = dataclasses.asdict(config.members[name])
        record = {"stages": {}, **run.record.get("suite", {}).get(name, {})}
        if changed := differences(record.setdefault("dataset", dataset), dataset, "dataset"):
            listing = "; ".join(f"{option} was {old!r} and is {new!r}" for option, (old, new) in changed.items())
            raise UserError(
                f"{run.directory} has begun with {name} when its file said something else: {listing}. Start a new run, "
                "or give the changed data set a name of its own."
            )
        record["stages"] = without_running(record["stages"])
        super().__init__(run.directory / FOLDER / name, record, run.is_main, run.interruption, run.decides)
        self.name, self.whole = f"{name}/", run

    def update(self, **values: Any) -> None:
        """Merge `values` into the data set's place in run.json."""
        self.record = {**self.record, **values}  # a new one: the run's heartbeat may be writing the other
        self.whole.update(suite={**self.whole.record.get("suite", {}), self.name.removesuffix("/"): self.record})

    def note_fallback(self, text: str) -> None:
        """Note it with the run's, and of which data set it is said."""
        self.whole.note_fallback(f"{self.name.removesuffix('/')}: {text}")

    @contextlib.contextmanager
    def about(self) -> Iterator[None]:
        """Say of which data set a UserError is."""
        try:
            yield
        except UserError as error:
            error.args = (f"{self.name.removesuffix('/')}: {error}",)
            raise
