"""What happens to the command line before Hydra sees it: .env, `run=`, and errors in plain sentences."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from vlmexp import confidential, distributed, quoting, trust
from vlmexp import config as schema
from vlmexp.config import Config
from vlmexp.data.vqav2 import SCRIPT
from vlmexp.errors import UserError, closest
from vlmexp.runs import refuse_other_config, require_run
from vlmexp.suites import EVALUATING

HELP = """\
vlmexp fine-tunes vision-language models: one config, one command, one run directory.

  python -m vlmexp                                 the whole pipeline: a tiny VLM on easy-VQA, on a CPU
  python -m vlmexp model=qwen2vl stage=train       another model, one stage
  python -m vlmexp peft.r=32 train.max_steps=100   any option of PEFT's and the Trainer's own classes
  python -m vlmexp model=qwen2vl stage=preview     what the model would be shown, on a page; reads no weights
  python -m vlmexp run=outputs/DAY/TIME            continue a run from its newest checkpoint
  python -m vlmexp stage=predict run=outputs/DAY/TIME image=a.jpg question="What is it?"   ask what it has trained:
        image=FOLDER asks about each image, image=[a.jpg,b.jpg] about both at once, video=FILE about a video;
        dataset=NAME predict.split=SPLIT answers a split and writes its test server's file; with run= alone it asks
        you; predict.weights=merged takes deployment_model/, model=NAME without run= a model as it is
  python -m vlmexp suite=ocr                       and what that has gained or lost on other data sets
  python -m vlmexp -m peft.r=8,16 seed=0,1         a sweep: one run for each combination, one after another
  python -m vlmexp -m hydra/sweeper=optuna 'peft.r=choice(8,16)'   a search: optuna proposes the runs
  python -m vlmexp -m peft.r=8,16 hydra/launcher=slurm     the same as SLURM jobs (slurm_local: as processes)
  python -m vlmexp stage=status sweep=multirun/DAY/TIME    how they stand; stage=resume starts what is missing
  python -m vlmexp stage=compare                   which run is best; compare.html=report.html shows why
  python -m vlmexp model=qwen2vl --cfg job         show every option with its value, and stop

  stage=  {stages}, or a dotted path to a function of (config, run)
  run=    a run directory: to continue, or for eval_finetuned and predict to ask; trust_run=true takes code, too

Hydra's own flags: --hydra-help. Tab completion: eval "$(vlmexp -sc install=bash)"

Groups:
"""

# Stages that work inside the directory named by run=; the others read it and write to one of their own.
CONTINUING = ("pipeline", "download", "eval_base", "train", "export")

# Options that name where runs go; nothing else tells that they are empty.
FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "paths.data", "paths.outputs", "paths.multirun")
# Of Hydra and ours; what they ask for is printed, and nothing is run.
PRINTING_FLAGS = (
    "--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i", "--package", "-p", "--shell-completion",
    "-sc",
)  # fmt: skip

# Those of Hydra's flags that take a value.
_WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-name", "-cn", "--config-dir", "-cd", "--config-path", "-cp")
# Hydra's flags for a folder of the user's own with groups of options.
OWN_FILES = ("--config-dir", "-cd", "--config-path", "-cp")
# Options of libraries, which have defaults of their own for what is not given.
_MAY_BE_TAKEN_AWAY = tuple(f"{leaf}." for leaf in schema.OPEN_LEAVES if leaf != "dataset.columns")
_OPTIONS_OF_THE_HUB = tuple(f"dataset.options.{name}" for name in ("path", "name", "revision"))
# Options that belong to the data set that is evaluated, and not to the trained model: another has its own.
OF_DATA = ("suite", "evaluation.suite", "evaluation.metrics", "evaluation.max_new_tokens", "evaluation.choices")
GROUPS = ("model", "dataset", "collator", "peft", "train", "evaluation", "suite", "tracking")
TEXTS = ("image", "video", "question")  # what a person asks, in any words
_REFERENCE = re.compile(r"(\\*)\$\{")


def read_dotenv() -> None:
    """Put the values of ./.env into the environment, unless they are set there already.

    Not in the directory of a run or a sweep: it may be somebody else's, and ours hold no such file.
    """
    if Path(".env").is_file():
        here = Path.cwd()
        if any((folder / name).exists() for folder in (here, *here.parents) for name in ("run.json", "points.jsonl")):
            print(f"vlmexp: {here / '.env'} is not read: it lies in the directory of a run.", file=sys.stderr)
            return
        from dotenv import load_dotenv

        try:
            load_dotenv(".env")
        except UnicodeDecodeError as error:
            raise UserError(f"{Path('.env').absolute()} is no UTF-8 ({error}): write it anew as plain text.") from None


def overrides(arguments: list[str]) -> list[str]:
    """The arguments that are Hydra overrides and not flags."""
    found = [
        argument for argument in arguments if not argument.startswith("-") and ("=" in argument or argument[:1] == "~")
    ]
    for override in found:
        if not key_of(override):
            raise UserError(f"{override!r} sets nothing: write option=value, for example peft.r=16.")
        if override.startswith("~") and not key_of(override).startswith(_MAY_BE_TAKEN_AWAY):
            _refuse_taking_away(override)
        group, _, value = override.lstrip("+~").partition("=")
        is_none = override.startswith("~") or value.strip("'\" ") in ("", "null", "{}") or value.startswith("[")
        if group in GROUPS and is_none:
            raise UserError(
                f"{override}: {group} is a group of options; choose one of its files, as --help lists them."
            )
    return found


def _refuse_taking_away(override: str) -> None:
    key = key_of(override)
    if key.partition(".")[0] in schema.option_names() and key not in GROUPS:
        raise UserError(
            f"{override}: an option of vlmexp is never away, and its default would come back: set it to another value, "
            "or to null where it may have none."
        )


def refuse_secrets(arguments: Iterable[str]) -> None:
    """Raise a UserError if an argument holds a secret: what is given here is kept with the run."""
    confidential.refuse((key_of(text) or text, text.partition("=")[2]) for text in arguments)


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


def flags_last(arguments: list[str]) -> list[str]:
    """The arguments with flags and their values behind all others, as Hydra takes no options on both sides of one."""
    given, flags = list[str](), list[str]()
    for number, word in enumerate(arguments):
        before = arguments[number - 1] if number else ""
        is_value = before in _WITH_VALUE or (before in ("--info", "-i") and "=" not in word)
        (flags if word.startswith("-") or is_value else given).append(word)
    return [*given, *flags]


def sweeps(arguments: list[str]) -> bool:
    """Whether the command is a sweep by its flag; a preset may make it one, too."""
    return "-m" in arguments or "--multirun" in arguments


def choose_experiments(arguments: list[str]) -> list[str]:
    """The arguments with `experiment=` for `+experiment=`: the group is in the defaults list, where Hydra adds none."""
    return [text.removeprefix("+") if key_of(text) == "experiment" else text for text in arguments]


def script_of_the_hub_replaced(arguments: list[str]) -> list[str]:
    """The arguments with `dataset=vqav2` for `dataset=hub` with the Hub's id of the same data, which is said.

    The id is typed, in DATASET, or the default; options that only a data set of the Hub takes are left out.
    """
    chosen = {key_of(text): quoting.text_of(text.partition("=")[2]) for text in overrides(arguments)}
    path = chosen.get("dataset.options.path") or os.environ.get("DATASET") or SCRIPT
    if chosen.get("dataset") != "hub" or path != SCRIPT:
        return arguments
    print(
        f"vlmexp: {SCRIPT} is a script on the Hub, which the datasets library runs no more; dataset=vqav2 takes its "
        "place, with the same data from the official archives.",
        file=sys.stderr,
    )
    kept = [text for text in arguments if key_of(text) not in _OPTIONS_OF_THE_HUB]
    return ["dataset=vqav2" if key_of(text) == "dataset" else text for text in kept]


def is_single_run(arguments: list[str]) -> bool:
    """Whether the command starts one run: no sweep, no question about the config."""
    return not sweeps(arguments) and not only_prints(arguments, ())


def only_prints(arguments: list[str], stages: Iterable[str]) -> bool:
    """Whether the command answers a question on the terminal, and neither starts nor writes anything."""
    if any(text.partition("=")[0] in PRINTING_FLAGS for text in arguments):
        return True
    writes = any(key_of(text) in ("compare.html", "compare.output") for text in arguments)
    return not writes and any(text in [f"stage={stage}" for stage in stages] for text in arguments)


def refuse_sweeps_of(stages: Iterable[str], arguments: list[str]) -> None:
    """Raise a UserError if -m is given with one of the stages, before Hydra makes a directory for the sweep."""
    for stage in stages:
        if f"stage={stage}" in arguments and {"-m", "--multirun"} & set(arguments):
            raise UserError(f"stage={stage} makes no run, so there is nothing to sweep: leave out -m.")


def key_of(override: str) -> str:
    """`peft.r` of `++peft.r=3`."""
    return override.lstrip("+~").partition("=")[0].partition("@")[0]


def inherit_from_run(arguments: list[str], config_dir: Path) -> list[str]:
    """With `run=DIRECTORY`, put that run's own overrides before the given ones, and continue in its directory.

    Args:
        config_dir: with the groups of options that are ours; of a run only these are taken unasked.

    Raises:
        UserError: the directory is no run directory, or it asks for what its author may do on the user's word only.
    """
    given = overrides(arguments)
    named = {key_of(override): override.partition("=")[2] for override in given}
    wanted = named.get("run")
    if wanted == "":
        raise UserError("run= is empty: name a run directory, or leave it out to start a new run.")
    if not wanted or wanted == "null" or sweeps(arguments):
        return arguments
    directory = Path(quoting.text_of(wanted)).expanduser()
    record = require_run(directory, Path(named.get("paths.outputs", "outputs")))
    stage = named.get("stage", record["stage"])
    elsewhere = stage in EVALUATING and stage != record["stage"] and "dataset" in named  # the run has other data
    continues = not elsewhere and (stage in CONTINUING or stage == record["stage"])
    chosen = not continues and not {"dataset", "suite", "evaluation.suite"}.isdisjoint(named)
    # An option that is given again, or whose whole group is chosen anew, is not inherited.
    inherited = [
        text
        for text in record["overrides"]
        if key_of(text) not in (*named, "hydra.run.dir", "stage", trust.WORD, *(OF_DATA if chosen else ()))
        and key_of(text).partition(".")[0] not in named
    ]
    flags = [argument for argument in arguments if argument not in given]
    own_files = "hydra.searchpath" in named or any(flag.startswith(OWN_FILES) for flag in flags)
    source = [text for text in record["overrides"] if key_of(text) == "run"] if continues else []
    taken = [*([] if "stage" in named else [f"stage={stage}"]), *inherited, *source]
    asked = trust.untrusted(taken, config_dir, own_files) + (trust.links_out(directory) if continues else [])
    trust.require_trust(asked, f"run={wanted}", named.get(trust.WORD, "").lower() == "true")
    if continues:
        inside = [f"hydra.run.dir={_quoted(directory.resolve())}", "hydra.output_subdir=null"]
        rest = [text for text in given if key_of(text) != "run"]
        return [*flags, *inherited, *source, f"stage={stage}", *(t for t in rest if key_of(t) != "stage"), *inside]
    return [*flags, *inherited, *(f"run={_quoted(directory)}" if key_of(text) == "run" else text for text in given)]


def flag_of(arguments: list[str], *names: str) -> str | None:
    """The value of a flag, under any of its names, behind it or behind its `=`; None if it is not given."""
    for number, word in enumerate(arguments):
        name, sign, value = word.partition("=")
        if name in names:
            return value if sign else next(iter(arguments[number + 1 :]), None)
    return None


def composition(arguments: list[str], config_dir: Path) -> tuple[Path, str, list[str]]:
    """What Hydra composes a command's config from: folder, name, and overrides without those that a sweep divides."""
    given = overrides(arguments)
    if sweeps(arguments):
        given = [text for text in given if (read := quoting.parsed(text)) and not read.is_sweep_override()]
    own = flag_of(arguments, "--config-dir", "-cd")
    if own is not None:  # Hydra searches it behind the others
        searched = [text for text in given if key_of(text) == "hydra.searchpath"]
        others = [folder for text in searched for folder in quoting.parsed(text).value()]  # type: ignore[union-attr]
        folders = ",".join(map(_quoted, map(str, [*others, f"file://{Path(own).absolute()}"])))
        given = [*(text for text in given if text not in searched), f"hydra.searchpath=[{folders}]"]
    name = flag_of(arguments, "--config-name", "-cn") or "config"
    return config_dir.absolute(), name.removesuffix(".yaml"), given


def output_folder(arguments: list[str]) -> Path:
    """Where the command's runs go, as far as its arguments tell."""
    named = {key_of(text): quoting.text_of(text.partition("=")[2]) for text in arguments if "=" in text}
    folder, root = ("hydra.sweep.dir", "multirun") if sweeps(arguments) else ("hydra.run.dir", "outputs")
    return Path(named.get("sweep") or named.get(folder) or named.get(f"paths.{root}") or root)


def refuse_unusable_folder(arguments: list[str]) -> None:
    """Raise a UserError if runs are to go to, or below, what is a file, or to no name at all."""
    for text in arguments:
        if key_of(text) in FOLDERS and "=" in text and not quoting.text_of(text.partition("=")[2]).strip():
            raise UserError(f"{text} is empty: name a folder, or leave it out.")
    folder = output_folder(arguments)
    if found := next((path for path in (folder, *folder.parents) if os.path.isfile(path)), None):
        raise UserError(f"{found} is a file, so no runs can go to {folder}: name another folder.")


def quote_texts(arguments: list[str]) -> list[str]:
    """The arguments with files and question of stage=predict in Hydra's quotes: they hold commas, signs and spaces.

    A text in Hydra's quotes and a list in its brackets are left, the list with quotes around the files that need them.
    """
    return [_as_text(text) if key_of(text) in TEXTS and "=" in text else text for text in arguments]


def _as_text(override: str) -> str:
    key, _, value = override.partition("=")
    is_read = quoting.parsed(f"x={value}") is not None
    if value in ("", "null") or (is_read and value[0] in "'\"" and value[-1] == value[0]):
        return override
    if value[0] + value[-1] == "[]" and key_of(override) != "question" and not _exists(value):
        typed = None if is_read else quoting.typed(override)
        return override if typed is None else shlex.split(typed)[0]
    return f"{key}={_quoted(_REFERENCE.sub(_literally, value))}"


def _literally(reference: re.Match[str]) -> str:
    """`${` with backslashes by which OmegaConf leaves it and those before it as they are."""
    return f"{2 * reference[1]}\\${{"


def command_of(arguments: list[str], commands: Iterable[str]) -> str | None:
    """The command that `stage=` names, if it names one and no stage."""
    named = {key_of(text): quoting.text_of(text.partition("=")[2]).strip() for text in overrides(arguments)}
    return next((command for command in commands if command == named.get("stage")), None)


def same_directory_on_all_ranks(arguments: list[str]) -> list[str]:
    """Give the ranks of one job one run directory: each would compose its own from the time of its start.

    Raises:
        UserError: a sweep, or ranks that have no way to agree.
    """
    if sweeps(arguments):
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
            directory = Path(quoting.text_of(override.partition("=")[2]))
            if (directory / "run.json").exists():
                refuse_other_config(directory, dataclasses.asdict(config))


def explain(error: HydraException | OmegaConfBaseException | YAMLError, in_sweep: bool = False) -> str:
    """One sentence for an error of Hydra's or OmegaConf's composition.

    Args:
        in_sweep: whether the command was to start a sweep.
    """
    for origin in (error, error.__cause__, error.__context__):
        if isinstance(origin, OmegaConfBaseException):
            return schema.explain(origin)
    text = " ".join(str(error).split())
    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, in_sweep)
    options = getattr(error, "options", None)
    missing = getattr(error, "missing_cfg_file", None)
    if missing and options:
        group, _, name = str(missing).rpartition("/")
        return f"{group}={name} does not exist{closest(name, options) or '.'} There are: {', '.join(options)}."
    if (several := re.match(r"Ambiguous value for argument '(.*?)'\n1\. ", str(error), re.DOTALL)) is not None:
        return _several_values(several[1])
    if (several := re.fullmatch(r"Sweep parameters '(.*)' requires --multirun", str(error), re.DOTALL)) is not None:
        return f"{several[1]} is a sweep: start it with -m."
    if "does not support sweep type" in text:
        return "interval() is for a search: write choice() or range(), or search with hydra/sweeper=optuna."
    if text.startswith("Cannot find primary config"):
        return f"--config-name: there is no {text.split(chr(39))[1]!r} in any folder of YAML files; leave the flag out."
    if isinstance(error, YAMLError):
        return f"A configuration file is no valid YAML: {text}."
    return text


def _unreadable(override: str, in_sweep: bool) -> str:
    """What to say of an override that Hydra's grammar does not take, and how it is typed."""
    key, _, value = override.partition("=")
    if quoting.parsed(f"{key}=1") is None:
        return f"{key!r} is no name of an option: write option=value, for example peft.r=16."
    if "\n" in value:
        return f"{key}={value!r} holds the end of a line: leave that out, or write the value into a YAML file."
    if value[:1] in "'\"" and value.count(value[:1]) == 1:
        return f"{override}: the quote {value[:1]} is opened and not closed: close it, or leave it out."
    way = quoting.typed(override, in_sweep)
    what = f"{override}: Hydra, which reads the command line, does not take {value!r} without quotes."
    return f"{what} Type it with the quotes of Hydra inside those of the shell: {way}" if way else what


def _several_values(override: str) -> str:
    """What to say of values divided by commas where no sweep was asked for."""
    option, _, values = override.partition("=")
    one = f"for one text type {quoting.one_text(override)}"
    if _exists(values):
        return f"{override} are several values for Hydra, and there is a file of this name: {one}"
    ways = ["sweep over them with -m"]
    if not all(re.fullmatch(r"[-+.\d]+(e[-+]?\d+)?|true|false", item.strip()) for item in values.split(",")):
        ways.append(one)
    if schema.may_be_list(option.lstrip("+")):
        ways.append(f"for a list type {quoting.typed(f'{option}=[{values}]')}")
    return f"{override} are several values: {', or '.join(ways)}"


def refuse_divided_paths(arguments: list[str]) -> None:
    """Raise a UserError if a sweep would take the name of a file for several values, because of its commas."""
    if not sweeps(arguments):
        return
    for text in overrides(arguments):
        value = text.partition("=")[2]
        if "," in value and _exists(value):
            raise UserError(
                f"{text} would be a sweep over {value.count(',') + 1} values, and there is a file or folder of this "
                f"name: type {quoting.one_text(text)}"
            )


def refuse_stray_words(arguments: list[str]) -> None:
    """Raise a UserError if a word sets nothing: most often the rest of a value with a space in it."""
    for number, word in enumerate(arguments):
        before = arguments[number - 1] if number else ""
        is_of_flag = before.startswith("-") and not sweeps([before])
        if word.startswith(("-", "~")) or "=" in word or is_of_flag:
            continue
        rest = itertools.takewhile(lambda text: "=" not in text and not text.startswith("-"), arguments[number:])
        whole = quoting.typed(" ".join([before, *rest])) if "=" in before else None
        way = f", and a value with spaces in quotes: {whole}" if whole else "."
        raise UserError(f"{word!r} is no option: write option=value{way}")


def _exists(path: str) -> bool:
    return os.path.exists(os.path.expanduser(path))  # not Path's own, which raises for a name that is too long


def _quoted(path: Path | str) -> str:
    return QuotedString(str(path), Quote.single).with_quotes()
