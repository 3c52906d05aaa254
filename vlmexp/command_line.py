"""What happens to the command line before Hydra sees it: .env, `run=`, and errors in plain sentences."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vlmexp import config as schema
from vlmexp import distributed
from vlmexp.config import Config
from vlmexp.errors import UserError, closest
from vlmexp.provenance import secrets_of_environment
from vlmexp.runs import refuse_other_config, require_run

HELP = """\
vlmexp fine-tunes vision-language models: one config, one command, one run directory.

  python -m vlmexp                                 the whole pipeline: a tiny VLM on easy-VQA, on a CPU
  python -m vlmexp model=qwen2vl stage=train       another model, one stage
  python -m vlmexp peft.r=32 train.max_steps=100   any option of PEFT's and the Trainer's own classes
  python -m vlmexp model=qwen2vl stage=preview     what the model would be shown, on a page; reads no weights
  python -m vlmexp run=outputs/DAY/TIME            continue a run from its newest checkpoint
  python -m vlmexp -m peft.r=8,16 seed=0,1         a sweep: one run for each combination, one after another
  python -m vlmexp -m hydra/sweeper=optuna 'peft.r=choice(8,16)'   a search: optuna proposes the runs
  python -m vlmexp -m peft.r=8,16 hydra/launcher=slurm     the same as SLURM jobs (slurm_local: as processes)
  python -m vlmexp stage=status sweep=multirun/DAY/TIME    how they stand; stage=resume starts what is missing
  python -m vlmexp stage=compare                   which run is best; compare.html=report.html shows why
  python -m vlmexp model=qwen2vl --cfg job         show every option with its value, and stop

  stage=  {stages}, or a dotted path to a function of (config, run)
  run=    a run directory: to continue, or for eval_finetuned to evaluate

Hydra's own flags: --hydra-help. Tab completion: eval "$(vlmexp -sc install=bash)"

Groups:
"""

# Stages that work inside the directory named by run=; the others read it and write to one of their own.
CONTINUING = ("pipeline", "download", "eval_base", "train", "export")

GROUPS_SET_TO_NULL = [
    f"{name}=null" for name in ("model", "dataset", "collator", "peft", "train", "evaluation", "tracking")
]


def read_dotenv() -> None:
    """Put the values of ./.env into the environment, unless they are set there already."""
    if Path(".env").is_file():
        from dotenv import load_dotenv

        load_dotenv(".env")


def overrides(arguments: list[str]) -> list[str]:
    """The arguments that are Hydra overrides and not flags."""
    found = [
        argument for argument in arguments if not argument.startswith("-") and ("=" in argument or argument[:1] == "~")
    ]
    for override in found:
        if not key_of(override):
            raise UserError(f"{override!r} sets nothing: write option=value, for example peft.r=16.")
        if override in GROUPS_SET_TO_NULL:
            group = key_of(override)
            raise UserError(
                f"{override}: {group} is a group of options; choose one of its files, as --help lists them."
            )
    return found


def refuse_secrets(arguments: Iterable[str]) -> None:
    """Raise a UserError if an argument holds a secret of the environment: what is given here is kept with the run."""
    for name, value in secrets_of_environment().items():
        if found := next((argument for argument in arguments if value in argument), None):
            raise UserError(
                f"{found.partition('=')[0]}: its value holds that of {name}, and options are kept with the run. "
                f"Leave it out; {name} is read from the environment."
            )


def help_text(config_dir: Path, stages: Iterable[str]) -> str:
    """The answer to --help: the idea, examples, and every group with its choices and what their files say of them."""
    lines = [HELP.format(stages=" | ".join(stages))]
    width = max(60, shutil.get_terminal_size().columns)
    for group in sorted(path for path in (*config_dir.iterdir(), *config_dir.glob("hydra/*")) if path.is_dir()):
        choices = sorted(group.glob("*.yaml"))
        if not choices:
            continue
        lines.append(f"  {group.relative_to(config_dir)}=")
        for choice in choices:
            text = f"    {choice.stem:<16} {_first_sentence(choice)}"
            lines.append(textwrap.fill(text, width, subsequent_indent=" " * 21, break_on_hyphens=False))
    return "\n".join(lines)


def _first_sentence(file: Path) -> str:
    """Of the comment at the beginning of a YAML file."""
    lines = [line.lstrip("# ") for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    paragraph = itertools.takewhile(bool, (line for line in lines if not line.startswith("@package")))
    return re.split(r"(?<!et al)\. ", " ".join(paragraph))[0].rstrip(".:")


def choose_experiments(arguments: list[str]) -> list[str]:
    """The arguments with `experiment=` for `+experiment=`: the group is in the defaults list, where Hydra adds none."""
    return [text.removeprefix("+") if key_of(text) == "experiment" else text for text in arguments]


def is_single_run(arguments: list[str]) -> bool:
    """Whether the command starts one run: no sweep, no question about the config, no other config folder."""
    if any(argument in ("-m", "--multirun", "--experimental-rerun") for argument in arguments):
        return False
    return all(argument in overrides(arguments) for argument in arguments)


def refuse_sweeps_of(stages: Iterable[str], arguments: list[str]) -> None:
    """Raise a UserError if -m is given with one of the stages, before Hydra makes a directory for the sweep."""
    for stage in stages:
        if f"stage={stage}" in arguments and {"-m", "--multirun"} & set(arguments):
            raise UserError(f"stage={stage} makes no run, so there is nothing to sweep: leave out -m.")


def key_of(override: str) -> str:
    """`peft.r` of `++peft.r=3`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def inherit_from_run(arguments: list[str]) -> list[str]:
    """With `run=DIRECTORY`, put that run's own overrides before the given ones, and continue in its directory.

    Raises:
        UserError: the directory is no run directory.
    """
    given = overrides(arguments)
    named = {key_of(override): override.partition("=")[2] for override in given}
    wanted = named.get("run")
    if wanted == "":
        raise UserError("run= is empty: name a run directory, or leave it out to start a new run.")
    if not wanted or wanted == "null" or "-m" in arguments or "--multirun" in arguments:
        return arguments
    directory = Path(wanted.strip("'\"")).expanduser()
    record = require_run(directory, Path(named.get("paths.outputs", "outputs")))
    # An option that is given again, or whose whole group is chosen anew, is not inherited.
    inherited = [
        text
        for text in record.get("overrides", [])
        if key_of(text) not in (*named, "hydra.run.dir", "stage") and key_of(text).partition(".")[0] not in named
    ]
    stage = named.get("stage", record["stage"])
    flags = [argument for argument in arguments if argument not in given]
    if stage in CONTINUING or stage == record["stage"]:
        inside = [f"hydra.run.dir={_quoted(directory.resolve())}", "hydra.output_subdir=null"]
        source = [text for text in record.get("overrides", []) if key_of(text) == "run"]
        rest = [text for text in given if key_of(text) != "run"]
        return [*flags, *inherited, *source, f"stage={stage}", *(t for t in rest if key_of(t) != "stage"), *inside]
    return [*flags, *inherited, *(f"run={_quoted(directory)}" if key_of(text) == "run" else text for text in given)]


def output_folder(arguments: list[str]) -> Path:
    """Where the command's runs go, as far as its arguments tell."""
    named = {key_of(text): text.partition("=")[2].strip("'\"") for text in arguments}
    sweeps = "-m" in arguments or "--multirun" in arguments
    folder, root = ("hydra.sweep.dir", "multirun") if sweeps else ("hydra.run.dir", "outputs")
    return Path(named.get("sweep") or named.get(folder) or named.get(f"paths.{root}") or root)


def refuse_a_file_as_folder(arguments: list[str]) -> None:
    """Raise a UserError if runs are to go to, or below, what is a file."""
    folder = output_folder(arguments)
    if found := next((path for path in (folder, *folder.parents) if path.is_file()), None):
        raise UserError(f"{found} is a file, so no runs can go to {folder}: name another folder.")


def command_of(arguments: list[str], commands: Iterable[str]) -> str | None:
    """The command that `stage=` names, if it names one and no stage."""
    named = {key_of(override): override.partition("=")[2] for override in overrides(arguments)}
    return next((command for command in commands if command == named.get("stage")), None)


def same_directory_on_all_ranks(arguments: list[str]) -> list[str]:
    """Give the ranks of one job one run directory: each would compose its own from the time of its start.

    Raises:
        UserError: a sweep, or ranks that have no way to agree.
    """
    if "-m" in arguments or "--multirun" in arguments:
        distributed.refuse_sweep()
    others = [] if distributed.rank() == 0 else ["hydra.output_subdir=null"]  # Hydra's own files are written once
    if not is_single_run(arguments) or "hydra.run.dir" in {key_of(override) for override in overrides(arguments)}:
        return [*arguments, *others]
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        raise UserError(
            "The ranks of this job were not started by torchrun and cannot agree on a run directory: "
            "set hydra.run.dir=DIRECTORY."
        )
    started = distributed.agreed_start()
    directory = f"${{paths.outputs}}/{started:%Y-%m-%d}/{started:%H-%M-%S-%f}"
    return [*arguments, f"hydra.run.dir={directory}", *others]


def refuse_occupied_directory(given: list[str], config: Config) -> None:
    """With an explicit `hydra.run.dir`, refuse a directory of another config before Hydra writes into it."""
    import dataclasses

    for override in given:
        if key_of(override) == "hydra.run.dir":
            directory = Path(override.partition("=")[2].strip("'\""))
            if (directory / "run.json").exists():
                refuse_other_config(directory, dataclasses.asdict(config))


def explain(error: HydraException | OmegaConfBaseException | YAMLError) -> str:
    """One sentence for an error of Hydra's or OmegaConf's composition."""
    for origin in (error, error.__cause__, error.__context__):
        if isinstance(origin, OmegaConfBaseException):
            return schema.explain(origin)
    text = " ".join(str(error).split())
    options = getattr(error, "options", None)
    missing = getattr(error, "missing_cfg_file", None)
    if missing and options:
        group, _, name = str(missing).rpartition("/")
        return f"{group}={name} does not exist{closest(name, options) or '.'} There are: {', '.join(options)}."
    if text.startswith("Ambiguous value for argument"):
        sweep = text.split("'")[1]
        option, _, values = sweep.partition("=")
        return f"{sweep} are several values: sweep over them with -m, or write {option}=[{values}] for a list."
    if isinstance(error, YAMLError):
        return f"A configuration file is no valid YAML: {text}."
    return text


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "\\'") + "'"
