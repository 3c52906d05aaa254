"""The entry: compose the config, open the run directory, call the stage, record the outcome.

Nothing here imports torch or transformers, so `--help`, `--cfg job` and a mistyped option answer at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import inspect
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vlmexp import command_line, confidential, distributed, mistyped, programs, quoting, terminal, trust
from vlmexp.config import Config, schema_node, train_extras
from vlmexp.data.sources import find_source
from vlmexp.errors import UserError, closest, shown, unknown, without_advice
from vlmexp.evaluation.lookup import metric_names
from vlmexp.files import read_json
from vlmexp.interruption import Preempted, back_to_the_queue, keep_exit_code
from vlmexp.runs import Run, where_it_is
from vlmexp.standstill import refuse_standstill
from vlmexp.storage import ImpossibleName, StorageError, require_file, require_folder, storage_error
from vlmexp.suites import checked_with_members, watched
from vlmexp.training.best import answered_examples

Stage = Callable[[Config, Run], dict[str, Any]]

STAGES = {
    "preview": "vlmexp.preview.stage.preview",
    "download": "vlmexp.data.stage.download",
    "eval_base": "vlmexp.evaluation.stage.eval_base",
    "train": "vlmexp.training.stage.train",
    "export": "vlmexp.export.stage.export",
    "eval_finetuned": "vlmexp.evaluation.stage.eval_finetuned",
    "predict": "vlmexp.predict.stage.predict",
    "pipeline": "vlmexp.pipeline.pipeline",
    "compare": "vlmexp.comparison.stage.compare",
}
READING = ("compare",)  # functions of the config alone: they read run directories and get none of their own
_LONG_WORD = re.compile(r"\S{1000,}")  # which no sentence needs whole
# What a library does not take is said before there is a directory; the others need a run, or no library.
ASKING_LIBRARIES = ("preview", "eval_base", "train", "pipeline", "eval_finetuned", "predict")
# What looks at runs and sweeps and opens none: functions of the options behind the name, called without Hydra.
COMMANDS = {
    "resume": "vlmexp.launch.commands.resume",
    "status": "vlmexp.launch.commands.status",
}
_PACKAGED = Path(__file__).parent / "conf"  # in a wheel; in a checkout conf/ lies beside the package
CONFIG_DIR = _PACKAGED if _PACKAGED.is_dir() else Path(__file__).parent.parent / "conf"

ConfigStore.instance().store(name="schema", node=schema_node())


def find_stage(name: str) -> Stage:
    """The function of a stage, by its name in the table or by a dotted path.

    Raises:
        UserError: no such stage, module or function.
    """
    target = STAGES.get(name, name)
    module_name, _, function_name = target.rpartition(".")
    if not module_name or not all(part.isidentifier() for part in target.split(".")):
        raise unknown("stage", name, STAGES)
    if module_name.partition(".")[0] in sys.stdlib_module_names:
        raise UserError(
            f"stage={name} is of Python's own library and no stage: name a function of (config, run), or one of "
            f"{', '.join(STAGES)}."
        )
    try:
        stage = getattr(importlib.import_module(module_name), function_name)
    except ModuleNotFoundError as error:
        if error.name is None or not module_name.startswith(error.name):
            raise UserError(f"stage={name}: importing {module_name} fails: {error}.") from error
        raise UserError(
            f"stage={name}: there is no module {error.name!r} to import; is its folder on PYTHONPATH?"
        ) from None
    except (ImportError, SyntaxError, ValueError, TypeError) as error:  # TypeError: a path that begins with a dot
        raise UserError(f"stage={name}: {module_name} cannot be imported: {error}.") from error
    except AttributeError:
        raise UserError(f"stage={name}: the module {module_name} has no function {function_name!r}.") from None
    if name not in STAGES and not _takes_two(stage):
        raise UserError(f"stage={name} is not a function of (config, run), which is what a stage is.")
    return stage  # type: ignore[no-any-return]


def _takes_two(stage: Any) -> bool:
    """Whether something can be called as a stage is."""
    if not callable(stage) or isinstance(stage, type):
        return False
    try:
        inspect.signature(stage).bind("config", "run")
    except (TypeError, ValueError):  # ValueError: of C code that does not tell
        return False
    return True


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="config")
def job(composed: DictConfig) -> float | None:
    """One run: what Hydra calls once, or once for every point of a sweep. Returns the stage's main metric, if any."""
    hydra_config = HydraConfig.get()
    directory = Path(hydra_config.runtime.output_dir)
    try:
        config = checked_with_members(composed, hydra_config.searchpath)
        stage = find_stage(config.stage)
        # The search path belongs to a run: without it, `run=` could not find the user's own YAML again.
        search_path = [text for text in hydra_config.overrides.hydra if text.startswith("hydra.searchpath=")]
        distributed.start()
        with Run.open(directory, config, [*hydra_config.overrides.task, *search_path]) as run:
            result = stage(config, run)
            run.conclude(result)
        distributed.stop()
    except Preempted as stopped:
        keep_exit_code()
        if distributed.rank() == 0:
            print(f"vlmexp: Stopped by {stopped}. Continue with {_argument(directory)}", file=sys.stderr)
        back_to_the_queue(stopped.signal, lambda limit: _refuse_standstill(directory, config, limit))
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print(f"\nvlmexp: Interrupted. Continue with {_argument(directory)}", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if hydra_config.mode == RunMode.MULTIRUN or os.environ.get("VLMEXP_TRACEBACK"):
            raise
        stop(storage_error(error, directory) or error, directory)
    metric = result.get("metric")
    return float(metric) if metric is not None else None


def check_before_launch(arguments: list[str]) -> Config:
    """Compose and check the config of a single run before Hydra makes a directory for it."""
    overrides = command_line.overrides(arguments)
    with composition(arguments) as composed:
        hydra_node = composed.hydra
        config = check(composed)
    if config.stage in READING:
        return config
    named = [text.partition("=")[2] for text in overrides if command_line.key_of(text) == "hydra.run.dir"]
    goes_on = any((Path(quoting.text_of(text)) / "run.json").exists() for text in named)  # with the model it began with
    sweeps = hydra_node.mode == RunMode.MULTIRUN  # of a preset, which -m does not announce
    if config.run is None and not goes_on:  # else some are of the run that is named, which has begun with them
        mistyped.refuse_what_stays(overrides, dataclasses.asdict(config))
        if not sweeps:
            mistyped.refuse_settings_of_sweeps(overrides)
    command_line.refuse_occupied_directory(overrides, config)
    if config.stage == "export" and not named:
        raise UserError("stage=export works on a training run: name one with run=DIRECTORY.")
    require_folders(hydra_node, config.paths.data, sweeps, goes_on)
    if config.stage == "preview" and config.preview.output is not None:
        require_file("preview.output", config.preview.output)
    if config.stage in ASKING_LIBRARIES and not goes_on:
        from vlmexp.pipeline import check_options

        check_options(config)
    return config


@contextlib.contextmanager
def composition(arguments: list[str]) -> Iterator[DictConfig]:
    """The config of a command, as Hydra will compose it, with its node `hydra`; within it Hydra is initialised."""
    folder, name, overrides = command_line.composition(arguments, CONFIG_DIR)
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(folder)):
        try:
            composed = hydra.compose(name, overrides, return_hydra_config=True)
        except TypeError as error:  # OmegaConf's, for a name within a list
            raise UserError(
                f"{error}: an item of a list has its number for a name, as in collator.messages.0.role."
            ) from None
        yield composed


def require_folders(hydra_node: DictConfig, data: str, sweeps: bool, goes_on: bool = False) -> None:
    """Raise a UserError if the folders that a run or a sweep writes to cannot be made.

    Args:
        goes_on: whether the run is there already.
    """
    kept = hydra_node.output_subdir
    if kept is not None and Path(str(kept)).name != str(kept):
        raise UserError(
            f"hydra.output_subdir={kept} must be a plain name: it is a folder in the run directory. Leave it out."
        )
    option = "hydra.sweep.dir" if sweeps else "hydra.run.dir"
    if not goes_on:
        require_folder(option, str(hydra_node.sweep.dir if sweeps else hydra_node.run.dir))
    if not Path(data).expanduser().is_dir():  # prepared data are read where nothing can be written, too
        require_folder("paths.data", str(Path(data).expanduser()))


def without_secrets(composed: DictConfig) -> DictConfig:
    """A composed config without its node `hydra`; a UserError if one of the resolved values, there too, is a secret."""
    confidential.refuse(confidential.options(composed))
    with open_dict(composed):
        composed.pop("hydra", None)
    return composed


def check_sweep(arguments: list[str]) -> None:
    """What can be said of a sweep as a whole, as far as its config can be composed without what it varies."""
    try:
        with composition(arguments) as composed:
            pass
    except (HydraException, OmegaConfBaseException, YAMLError):  # what is wrong with it is said when it is used
        return
    hydra_node = composed.hydra
    data = OmegaConf.select(composed, "paths.data")
    without_secrets(composed)
    require_folders(hydra_node, str(data), sweeps=True)


def refuse_missing_package(arguments: list[str]) -> None:
    """Raise a UserError if --package names nothing that --cfg could show."""
    package, shown = command_line.flag_of(arguments, "--package", "-p"), command_line.flag_of(arguments, "--cfg", "-c")
    if package in (None, "_global_") or shown is None:
        return
    with composition(arguments) as composed:
        pass
    config = without_secrets(composed) if shown == "job" else composed
    found = None
    with contextlib.suppress(OmegaConfBaseException):
        found = OmegaConf.select(config, package)
    if found is None:
        near = closest(package, map(str, config)) or "; --cfg job shows what there is."
        raise UserError(f"--package {package} names nothing that has a value{near}")


def check(composed: DictConfig) -> Config:
    """All that can be said about a config, composed with its node `hydra`, before its run starts; raises UserError."""
    search_path = composed.hydra.searchpath
    config = checked_with_members(without_secrets(composed), search_path)
    if config.stage in READING:
        return config
    distributed.refuse_sharding()
    if config.stage not in STAGES:
        find_stage(config.stage)
    for dataset in (config.dataset, *config.members.values()):
        find_source(dataset.source, dataset.options)
        metric_names(dataset.metrics)
    metric_names(config.evaluation.metrics or [])
    if config.stage in ("train", "pipeline"):
        answering, wanted = watched(config)
        metrics = answering.evaluation.metrics or answering.dataset.metrics
        answered_examples(wanted, metrics, train_extras(config).eval_generation_examples)
    return config


def main() -> None:
    """Run the command line; exit with 2 after bad input and with 1 after a failed run, each with one sentence."""
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra raises instead of printing, so that we can say it better
    # Threads that wait for each other sleep instead of spinning: with another process on the machine's cores, a small
    # model on two threads is then five times as fast. It is read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # PEFT imports bitsandbytes where it is installed, which then tells everybody what 4-bit models lack on a CPU.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    terminal.prepare()
    if command_line.only_prints(sys.argv[1:], (*READING, "status")):
        terminal.end_with_the_pipe()
    else:
        terminal.outlast_the_pipe()
    try:
        if any(flag in sys.argv[1:] for flag in ("--help", "-h")):
            print(command_line.help_text(CONFIG_DIR, [*STAGES, *COMMANDS]))
            return
        command_line.read_dotenv()
        command_line.refuse_secrets(sys.argv[1:])
        sys.argv[1:] = command_line.choose_experiments(command_line.flags_last(sys.argv[1:]))
        sys.argv[1:] = command_line.script_of_the_hub_replaced(sys.argv[1:])
        mistyped.refuse_lookalikes(sys.argv[1:])
        mistyped.refuse_flags(sys.argv[1:])
        mistyped.refuse_numbers_for_switches(sys.argv[1:])
        mistyped.refuse_missing_searchpath(sys.argv[1:])
        mistyped.refuse_unknown_choices(CONFIG_DIR, sys.argv[1:])
        command_line.refuse_stray_words(sys.argv[1:])
        sys.argv[1:] = command_line.quote_texts(sys.argv[1:])
        command_line.refuse_sweeps_of(READING, sys.argv[1:])
        command_line.refuse_divided_paths(sys.argv[1:])
        if command := command_line.command_of(sys.argv[1:], COMMANDS):
            module_name, _, function_name = COMMANDS[command].rpartition(".")
            getattr(importlib.import_module(module_name), function_name)(sys.argv[1:])
            return
        command_line.refuse_unusable_folder(sys.argv[1:])
        sys.argv[1:] = command_line.inherit_from_run(sys.argv[1:], CONFIG_DIR)
        if distributed.world_size() > 1:
            sys.argv[1:] = command_line.same_directory_on_all_ranks(sys.argv[1:])
        if command_line.is_single_run(sys.argv[1:]):
            config = check_before_launch(sys.argv[1:])
            if config.stage in READING:
                from vlmexp.comparison.stage import compare

                compare(config)
                return
        elif command_line.sweeps(sys.argv[1:]):
            check_sweep(sys.argv[1:])
        else:
            refuse_missing_package(sys.argv[1:])
        with programs.of_the_user():
            job()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if os.environ.get("VLMEXP_TRACEBACK"):
            raise
        stop(storage_error(error, command_line.output_folder(sys.argv[1:])) or error)


def _refuse_standstill(directory: Path, config: Config, limit: str) -> None:
    with contextlib.suppress(FileNotFoundError):  # it was told before there was one
        refuse_standstill(directory, where_it_is(directory, read_json(directory / "run.json"), config), limit)


def _argument(directory: Path) -> str:
    """What names a run on the command line, for a shell, with the user's word if it takes that to continue it."""
    try:
        asks = trust.untrusted(read_json(directory / "run.json")["overrides"], CONFIG_DIR)
    except (OSError, ValueError, KeyError):  # of a run that has not come so far
        asks = []
    return shlex.quote(f"run={directory}") + (f" {trust.WORD}=true" if asks else "")


def stop(error: Exception, directory: Path | None = None) -> NoReturn:
    """Print one sentence and exit: with 2 if the user can put it right, else with 1."""
    code = 2
    if isinstance(error, UserError):
        code, text = error.exit_code, str(error)
        can_go_on = isinstance(error, StorageError) and not isinstance(error, ImpossibleName)
        if can_go_on and directory and (directory / "run.json").exists():
            text += f" Then continue with {_argument(directory)}"
    elif isinstance(error, HydraException | OmegaConfBaseException | YAMLError):
        text = command_line.explain(error, command_line.sweeps(sys.argv[1:]))
    else:
        code = 1
        where = f"The traceback is in {directory / 'train.log'}; " if directory else ""
        text = f"{type(error).__name__}: {error}\n{where}VLMEXP_TRACEBACK=1 prints the traceback."
    text = _LONG_WORD.sub(lambda word: shown(word[0]), confidential.redacted(without_advice(text)))
    print(f"vlmexp: {text}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
