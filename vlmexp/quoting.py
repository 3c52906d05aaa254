"""How a value that Hydra's grammar does not take as it is has to be typed: in its quotes, inside those of the shell.

The grammar: https://hydra.cc/docs/1.3/advanced/override_grammar/basic. Every form that is returned here has been read
back, by the shell's rules and by Hydra's own parser.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, ValueType
from hydra.errors import HydraException

_FUNCTION = re.compile(r"\s*(choice|range|interval|glob|tag|sort|shuffle|int|float|str|bool)\((.*)\)\s*", re.DOTALL)
_IN_DOUBLE_QUOTES = re.compile(r'[$`"!\n]|\\\\')  # what a shell does not leave alone there


def parsed(override: str) -> Override | None:
    """What Hydra reads; None if it cannot."""
    try:
        return OverridesParser.create().parse_overrides([override])[0]
    except (HydraException, RecursionError):
        return None


def text_of(value: str) -> str:
    """The text that a value on the command line stands for: without Hydra's quotes, where it has some."""
    found = parsed(f"x={value}")
    read = found.value() if found is not None and found.value_type == ValueType.ELEMENT else None
    return read if isinstance(read, str) else value


def typed(override: str, sweeps: bool = False) -> str | None:
    """An override as it has to be typed into a shell to mean what was meant; None if it cannot be said.

    >>> print(typed("dataset.options.train=a=b.jsonl"))
    'dataset.options.train="a=b.jsonl"'

    Args:
        sweeps: whether its commas may divide the values of a sweep.
    """
    key, sign, value = override.partition("=")
    mended = _mended(value, sweeps)
    return one_text(override) if mended in _quoted(value) else _in_shell(f"{key}{sign}{mended}")


def one_text(override: str) -> str | None:
    """An override whose whole value is one text, as it has to be typed into a shell; the shortest way."""
    key, sign, value = override.partition("=")
    forms = [_in_shell(f"{key}{sign}{text}") for text in _quoted(value) if text_of(text) == value]
    return min(filter(None, forms), key=len, default=None)


def parts(text: str, separator: str = ",") -> list[str] | None:
    """A text divided at the separators outside of quotes and brackets; None if these are not closed."""
    found, depth, quote, start = list[str](), 0, "", 0
    for index, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote and text[index - 1] != "\\" else quote
        elif letter in "'\"" and not text[start:index].strip():
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        elif letter == separator and depth == 0:
            found.append(text[start:index])
            start = index + 1
        if depth < 0:
            return None
    return None if depth or quote else [*found, text[start:]]


def _mended(value: str, sweeps: bool) -> str:
    """The value with quotes around those of its texts that need them."""
    if parsed(f"x={value}") is not None:
        return value
    inner, text = value.strip()[1:-1], value.strip()

    def item(part: str) -> str:
        return _mended(part.strip(), sweeps=False)

    def pair(part: str) -> str:
        name, _, held = part.partition(":")
        return f"{item(name)}: {item(held)}"

    if text[:1] + text[-1:] == "[]" and (items := parts(inner)):
        return _if_read(f"[{','.join(map(item, items))}]", value)
    if text[:1] + text[-1:] == "{}" and (items := parts(inner)) and all(":" in part for part in items):
        return _if_read(f"{{{', '.join(map(pair, items))}}}", value)
    if (call := _FUNCTION.fullmatch(value)) and (items := parts(call[2])):
        return _if_read(f"{call[1]}({','.join(map(item, items))})", value)
    if sweeps and (items := parts(value)) and len(items) > 1:
        return _if_read(",".join(map(item, items)), value)
    return next(_quoted(value))


def _if_read(text: str, value: str) -> str:
    return text if parsed(f"x={text}") is not None else next(_quoted(value))


def _quoted(value: str) -> Iterator[str]:
    """The value as one text, in either of Hydra's quotes."""
    for quote in (Quote.double, Quote.single):
        yield QuotedString(value, quote).with_quotes()


def _in_shell(override: str) -> str | None:
    """The override in the quotes of a shell, if Hydra reads it."""
    if parsed(override) is None:
        return None
    is_plain = "'" in override and not _IN_DOUBLE_QUOTES.search(override)
    shell = f'"{override}"' if is_plain else shlex.quote(override)
    return shell if shlex.split(shell) == [override] else None
