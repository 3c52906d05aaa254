"""Secrets: what counts as one, which options hold one, and how they are taken out of whatever is written."""

from __future__ import annotations

import base64
import functools
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from omegaconf import DictConfig, ListConfig
from omegaconf.errors import OmegaConfBaseException

from vlmexp.errors import UserError

# Names of environment variables; of these not the ones that say where something lies.
_NAME = re.compile(
    r"TOKEN(?!S|IZER)|SECRET|PASSW|PASSPHRASE|CREDENTIAL|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY"
    r"|(^|_)(KEY|PAT|PASS|PWD|AUTH|BEARER|COOKIE)(_|\d|$)"
)
_PLACE = re.compile(r"(PATH|FILE|DIR|SOCK)$|^PWD$")
# Options, by the last part of their names, whose texts are secrets wherever they come from.
_OPTIONS = re.compile(
    r"(^|\.)(token|auth_token|use_auth_token|access_token|password|passwd|secret|secret_key|api_?key)$"
)
_ENVIRONMENT = "hydra.job.env_set."
_LEAST = 8  # letters of a secret; with digits among them, which no word has, _LEAST_MIXED
_LEAST_MIXED = 6
# What is said of it, a part that is in each text with one, and the secret itself, as the group `secret` or as a whole.
_SHAPES = [
    (kind, part, re.compile(pattern))
    for kind, part, pattern in (
        ("a token of Hugging Face", "hf_", r"(?<![A-Za-z0-9])hf_[A-Za-z0-9]{16,}"),
        ("a token of Hugging Face", "api_org_", r"(?<![A-Za-z0-9])api_org_[A-Za-z0-9]{16,}"),
        ("an API key", "sk-", r"(?<![A-Za-z0-9])sk-(?=[\w-]*\d)[\w-]{16,}"),
        ("an API key", "wandb_v", r"(?<![A-Za-z0-9])wandb_v\d+_\w{16,}"),
        ("a token of GitHub", "gh", r"(?<![A-Za-z0-9])gh[opsur]_[A-Za-z0-9]{16,}"),
        ("a token of GitHub", "github_pat_", r"github_pat_\w{16,}"),
        ("a token of GitLab", "glpat-", r"glpat-[\w-]{16,}"),
        ("a token of Slack", "xox", r"(?<![A-Za-z0-9])xox[abeoprs]-[\w-]{10,}"),
        ("an access key", "A", r"(?<![A-Za-z0-9])A[KS]IA[A-Z0-9]{16}(?![A-Za-z0-9])"),
        ("an API key", "AIza", r"(?<![A-Za-z0-9])AIza[\w-]{30,}"),
        ("a web token", "eyJ", r"(?<![A-Za-z0-9])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,}"),
        ("a private key", "PRIVATE KEY", r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(-----END [A-Z ]*KEY-----|$)"),
        ("a bearer's token", "earer ", r"[Bb]earer (?P<secret>[\w.~+/-]{16,}=*)"),
        ("a password in a URL", "://", r"://[^\s/:@'\"]*:(?P<secret>[^\s/@'\"<$]+)@"),
        (
            "a value for an environment variable that is a secret",
            "",
            r"(?:TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|ACCESS_KEY|SECRET_KEY)"
            r"\s*[=:]\s*['\"]?(?P<secret>[^\s'\"$<{(/\\,;][^\s'\"<,;]{7,})",
        ),
    )
]


def known() -> dict[str, str]:
    """What it is -> its value: of the environment, passwords of addresses in it, and what libraries read from files."""
    found: dict[str, str] = {}
    for name, value in os.environ.items():
        if _NAME.search(name.upper()) and not _PLACE.search(name.upper()) and _is_secret(value):
            found[name] = value
        for match in _shape("a password in a URL").finditer(value) if "://" in value else ():
            found.setdefault(name, match["secret"])
    return {**_of_files(), **found}


def kind_of(text: str) -> str | None:
    """What secret a text holds, in words; None if none is seen."""
    if name := next((name for form, name in _forms_of_known() if form in text), None):
        return f"that of {name}"
    return next((kind for kind, part, shape in _SHAPES if part in text and shape.search(text)), None)


def redacted(text: str) -> str:
    """The text without secrets: those that are known, in the forms in which they are written, and what looks so."""
    return _redacted(text, _forms_of_known())


def _redacted(text: str, forms: Iterable[tuple[str, str]]) -> str:
    for form, name in forms:
        if form in text:
            text = text.replace(form, f"<{name}>")
    for kind, part, shape in _SHAPES:
        if part in text:
            text = shape.sub(functools.partial(_without, f"<{kind}>"), text)
    return text


def redacted_values(value: Any) -> Any:
    """The same of all texts in lists and dictionaries."""
    forms = _forms_of_known()

    def without(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {without(name): without(inner) for name, inner in value.items()}
        if isinstance(value, list | tuple):
            return [without(inner) for inner in value]
        return _redacted(value, forms) if isinstance(value, str) else value

    return without(value)


def refuse(options: Iterable[tuple[str, Any]]) -> None:
    """Raise a UserError if an option holds a secret: options are kept with the run."""
    given = [(option, value, _is_named(option, value)) for option, value in options]
    together = "\n".join(f"{option}\n{value}" for option, value, _ in given)
    if not any(is_named for *_, is_named in given) and kind_of(together) is None:
        return  # as nearly always; each by itself takes a while
    for option, value, is_named in given:
        kind = "a secret, as its name says" if is_named else kind_of(str(value)) or kind_of(option)
        if kind is not None:
            name = kind.removeprefix("that of ")
            where = "secrets such as HF_TOKEN are" if name == kind else f"{name} is"
            raise UserError(
                f"{redacted(option)}: its value holds {kind}, and options are kept with the run. Leave it out; {where} "
                "read from the environment."
            )


def _is_named(option: str, value: Any) -> bool:
    """Whether an option is one for a secret by its name, and has one."""
    variable = option.removeprefix(_ENVIRONMENT) if option.startswith(_ENVIRONMENT) else ""
    is_for_one = _OPTIONS.search(option) or _NAME.search(variable.upper())
    return bool(is_for_one) and isinstance(value, str) and _is_secret(value)


def options(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted option, resolved value) of every leaf of a composed configuration; what cannot be resolved is left out.

    It is refused elsewhere, or is known in a run only, as Hydra's own `runtime` is.
    """
    keys: Iterable[Any] = range(len(node)) if isinstance(node, ListConfig) else list(node)
    for key in keys:
        option = f"{path}.{key}".lstrip(".")
        try:
            value = node[key]
        except OmegaConfBaseException:
            continue
        if isinstance(value, DictConfig | ListConfig):
            yield from options(value, option) if option.count(".") < 32 else ()  # it may hold itself
        else:
            yield option, value


def _is_secret(value: str) -> bool:
    """Whether it is long enough to be one, and no path."""
    is_mixed = any(map(str.isdigit, value)) and any(map(str.isalpha, value))
    if len(value) < (_LEAST_MIXED if is_mixed else _LEAST):
        return False
    return not (value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value)))


def _of_files() -> dict[str, str]:
    """What `hf auth login` and `wandb login` have written into the home directory."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    home = os.environ.get("HF_HOME", os.path.join(cache, "huggingface"))
    token = _content(os.environ.get("HF_TOKEN_PATH", os.path.join(home, "token"))).strip()
    netrc = re.findall(r"\bpassword\s+(\S+)", _content(os.environ.get("NETRC", "~/.netrc")))
    found = {"huggingface/token": token, **{f"netrc {n}": password for n, password in enumerate(netrc)}}
    return {name: value for name, value in found.items() if _is_secret(value)}


def _content(path: str) -> str:
    file = Path(path).expanduser()
    try:
        state = file.stat()
        return _read(file, state.st_mtime_ns, state.st_size) if state.st_size < 2**20 else ""
    except OSError:
        return ""


@functools.lru_cache(maxsize=8)
def _read(file: Path, changed_ns: int, size: int) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""


def _forms_of_known() -> list[tuple[str, str]]:
    """(text that stands for a secret, its name), the longest first: one may be a part of another."""
    return _forms(tuple(sorted(known().items())))


@functools.lru_cache(maxsize=8)
def _forms(secrets: tuple[tuple[str, str], ...]) -> list[tuple[str, str]]:
    found = {form: name for name, value in secrets for form in _written(value)}
    return sorted(found.items(), key=lambda item: -len(item[0]))


def _written(value: str) -> Iterator[str]:
    """A value as it is, in JSON, in an address, and in base64 wherever it begins in what is encoded."""
    yield value
    yield json.dumps(value)[1:-1]
    yield repr(value)[1:-1]
    yield quote(value, safe="")
    yield quote(value)
    data = value.encode(errors="surrogateescape")
    for before in range(3):
        whole = slice(-(-before * 8 // 6), (before + len(data)) * 8 // 6)  # characters that hold bits of it alone
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            yield encode(b"\0" * before + data).decode()[whole]


def _shape(kind: str) -> re.Pattern[str]:
    return next(shape for name, _, shape in _SHAPES if name == kind)


def _without(mark: str, match: re.Match[str]) -> str:
    """What a pattern has found, with the mark in the place of the secret."""
    if "secret" not in match.re.groupindex:
        return mark
    start, end = (match.span("secret")[i] - match.start() for i in (0, 1))
    return match[0][:start] + mark + match[0][end:]
