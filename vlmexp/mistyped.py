"""What is typed wrongly on the command line: letters that look like others, and flags that Hydra has not."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from hydra._internal.utils import get_args_parser
from hydra.core.override_parser.types import ValueType

from vlmexp import quoting
from vlmexp.config import PeftExtras, TrainExtras, is_switch, option_names
from vlmexp.errors import UserError, closest
from vlmexp.signatures import class_fields

# Letters that editors, chats and web pages put in the place of those that a command line is written with.
_MEANT = {
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
    **dict.fromkeys("\u2018\u2019\u201a\u201b\u2032\uff07", "'"),
    **dict.fromkeys("\u201c\u201d\u201e\u201f\u00ab\u00bb\u2033\uff02", '"'),
    **dict.fromkeys("\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u3000", " "),
    **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff", ""),
    "\u2236": ":", "\u201a": ",", "\u3001": ",",
}  # fmt: skip
_CURLY = re.compile("^[\u2018\u201c\u201e\u00ab].*[\u2019\u201c\u201d\u00bb]$", re.DOTALL)
_NUMBER = re.compile(r"[-+]?(\d[\d_]*\.?\d*|\.\d+)(e[-+]?\d+)?", re.IGNORECASE | re.ASCII)
# Flags of which each asks for something of its own.
_COMMANDS = ("run", "multirun", "cfg", "info", "shell_completion")
_COMPLETION, _SHELLS = ("install", "uninstall", "query"), ("bash", "fish", "zsh")
_OF_SWEEPS = ("hydra/launcher", "hydra.launcher", "hydra/sweeper", "hydra.sweeper", "hydra.sweep.")
_LISTED = re.compile(r"[\s,\[\]]+")


def refuse_lookalikes(arguments: Iterable[str]) -> None:
    """Raise a UserError for a letter that is none of those it looks like: in a flag, a name, or where a number stands.

    Within a text all letters are welcome.
    """
    for word in arguments:
        found = [letter for letter in word if _meant(letter) != letter]
        key, sign, value = "".join(map(_meant, word)).partition("=")
        if not found or not _is_mistaken(word, value if sign else ""):
            continue
        letter = next((letter for letter in word.partition("=")[0] if letter in found), found[0])
        name = unicodedata.name(letter, "a letter without a name").lower()
        looks = f"where {_meant(letter)!r} was meant" if _meant(letter).strip() else "which nobody sees"
        raise UserError(
            f"{_shown(word)} has the letter U+{ord(letter):04X} ({name}) {looks}: type {f'{key}{sign}{value}'.strip()}"
        )


def _is_mistaken(word: str, value: str) -> bool:
    name, sign, given = word.partition("=")
    if not sign or any(_meant(letter) != letter for letter in name):
        return not sign or name[:1] != "$"
    if _CURLY.match(given.strip()):
        return True
    return given != value and all(_NUMBER.fullmatch(item) for item in filter(None, _LISTED.split(value)))


def _meant(letter: str) -> str:
    """The letter of ASCII that a letter stands for: of its full width, of its kind; else itself."""
    if letter.isascii():
        return letter
    if letter in _MEANT:
        return _MEANT[letter]
    if letter.isdecimal():
        return str(unicodedata.decimal(letter))
    return unicodedata.normalize("NFKC", letter) if "\uff01" <= letter <= "\uff5e" else letter


def refuse_flags(arguments: list[str]) -> None:
    """Raise a UserError for a flag that there is not, that lacks its value, or whose value is none of its own."""
    flags = {text: action for action in get_args_parser()._actions for text in action.option_strings}
    for number, word in enumerate(arguments):
        if not word.startswith("-"):
            continue
        name, sign, value = word.partition("=")
        if name not in flags:
            raise _no_flag(name, sign, [text for text in flags if len(text) > 2])
        if name == "--experimental-rerun":
            raise UserError(f"{name} would read a pickle, which can run code: continue a run with run=DIRECTORY.")
        if sign and flags[name].nargs == 0:
            raise UserError(f"{word}: the flag {name} takes no value; write {name} alone.")
        after = value if sign else next(iter(arguments[number + 1 :]), None)
        _check_flag(name, flags[name], after)
    _refuse_two_commands(arguments, flags)
    if not any(word.partition("=")[0] in ("--cfg", "-c") for word in arguments):
        for word in arguments:
            if word.partition("=")[0] in ("--resolve", "--package", "-p"):
                raise UserError(f"{word} says how --cfg shows the configuration: write it with --cfg job.")


def _refuse_two_commands(arguments: Iterable[str], flags: Mapping[str, argparse.Action]) -> None:
    """One command does one thing, and one that completes a shell's lines says which shell."""
    names = [word.partition("=")[0] for word in arguments if word.startswith("-")]
    given = {flags[name].dest: name for name in names if flags[name].dest in _COMMANDS}
    if len(given) > 1:
        raise UserError(f"{' and '.join(given.values())} ask for different things: leave out all but one.")
    asked = [word for word in arguments if word.partition("=")[0] in _COMPLETION]
    for name in [name for dest, name in given.items() if dest == "shell_completion"]:
        if len(asked) != 1 or asked[0].partition("=")[2] not in _SHELLS:
            raise UserError(
                f"{name} needs one of {', '.join(f'{what}=SHELL' for what in _COMPLETION)}: bash, fish, zsh."
            )


def _no_flag(name: str, sign: str, flags: Iterable[str]) -> UserError:
    option = name.lstrip("-")
    if option.partition(".")[0] in option_names():
        return UserError(f"{name} is no flag: options are written without dashes, as {option}=VALUE.")
    near = closest(name, flags) if option else ""
    return UserError(f"{name!r} is no flag{near or ': --help shows what can be typed.'}")


def _check_flag(name: str, action: argparse.Action, value: str | None) -> None:
    choices = ", ".join(map(str, action.choices or ()))
    if action.nargs == 0:
        return
    is_given = value is not None and not value.startswith("-")
    if not is_given or not value:
        if action.nargs is None:
            raise UserError(f"{name} needs a value behind it{f': one of {choices}' if choices else ''}.")
        return
    if action.choices and value not in action.choices and not (action.nargs == "?" and "=" in value):
        raise UserError(f"{name} {value!r} must be one of {choices}{closest(value, map(str, action.choices))}")
    if name in ("--config-path", "-cp"):
        raise UserError(
            f"{name} {value} would leave out vlmexp's own options: name a folder of yours with --config-dir."
        )
    if name in ("--config-dir", "-cd") and not os.path.isdir(os.path.expanduser(value)):
        raise UserError(f"{name} {value}: there is no such folder; name one that holds groups of YAML files.")


def refuse_what_stays(overrides: Iterable[str], options: Mapping[str, Any]) -> None:
    """Raise a UserError for what takes nothing away, or puts a library's own value in the place of what it takes away.

    Args:
        options: the composed ones, by their names.
    """
    adapter = options["peft"].get("config_class") or "PeftConfig"
    owners = {
        "train": (TrainExtras, "transformers", "TrainingArguments"),
        "peft": (PeftExtras, "peft", adapter),
    }
    for text in overrides:
        key, _, value = text.lstrip("+~").partition("=")
        held: Any = options
        for name in key.split("."):
            held = held.get(name) if isinstance(held, Mapping) else None
        if value.replace(" ", "") == "{}" and isinstance(held, Mapping) and held:
            raise UserError(f"{text} takes nothing away: {', '.join(held)} stay; set each to null, or leave it out.")
        group, _, name = key.partition(".")
        if text.startswith("~") and group in owners:
            ours, package, class_name = owners[group]
            if name in class_fields(package, class_name) or hasattr(ours(), name):
                raise UserError(
                    f"{text}: without it the default of {class_name} would count, and not nothing: set {key} to the "
                    "value that is meant."
                )


def refuse_settings_of_sweeps(overrides: Iterable[str]) -> None:
    """Raise a UserError for what says how a sweep is launched, where there is none."""
    for text in overrides:
        if text.lstrip("+~").startswith(_OF_SWEEPS):
            raise UserError(f"{text} is for a sweep, and this is a single run: add -m, or leave it out.")


def refuse_missing_searchpath(arguments: Iterable[str]) -> None:
    """Raise a UserError for a folder in `hydra.searchpath` that is not there: its files would be missed in silence."""
    for text in arguments:
        found = quoting.parsed(text) if text.startswith("hydra.searchpath=") else None
        value = found.value() if found is not None and not found.is_sweep_override() else []
        for path in value if isinstance(value, list) else [value]:
            scheme, sign, folder = str(path).partition("://")
            if not _is_there(scheme if sign else "file", folder if sign else scheme):
                raise UserError(
                    f"hydra.searchpath={path}: there is no such folder; write hydra.searchpath=[file:///FOLDER] with "
                    "one that holds groups of YAML files."
                )


def refuse_numbers_for_switches(arguments: Iterable[str]) -> None:
    """Raise a UserError for a number where true or false stands; 1 and 0 are understood."""
    for text in arguments:
        found = quoting.parsed(text) if "=" in text and not text.startswith("-") else None
        value = found.value() if found is not None and found.value_type == ValueType.ELEMENT else None
        if isinstance(value, int) and value not in (0, 1) and is_switch(text.lstrip("+").partition("=")[0]):
            raise UserError(f"{text} must be true or false.")


def _is_there(scheme: str, place: str) -> bool:
    if scheme == "pkg":
        try:
            return importlib.util.find_spec(place.replace("/", ".")) is not None
        except (ImportError, ValueError):
            return False
    return scheme != "file" or os.path.isdir(os.path.expanduser(place))


def refuse_unknown_choices(config_dir: Path, arguments: list[str]) -> None:
    """Raise a UserError for a sweep over a choice that a group has not, before Hydra makes a directory for it."""
    if any(text.startswith(("hydra.searchpath=", "--config-dir", "-cd")) for text in arguments):
        return
    for text in arguments:
        group, _, _ = text.partition("=")
        found = quoting.parsed(text) if (config_dir / group).is_dir() and group else None
        if found is None or found.value_type not in (ValueType.CHOICE_SWEEP, ValueType.SIMPLE_CHOICE_SWEEP):
            continue
        choices = [path.stem for path in (config_dir / group).glob("*.yaml")]
        for name in map(str, found.sweep_iterator()):
            if name not in choices:
                raise UserError(
                    f"{group}={name} does not exist{closest(name, choices) or '.'} There are: "
                    f"{', '.join(sorted(choices))}."
                )


def _shown(word: str) -> str:
    """A word whose odd letters can be seen."""
    return "".join(letter if letter.isprintable() and _meant(letter) else f"\\u{ord(letter):04x}" for letter in word)
