"""What the number of an example's tokens depends on, beside the example."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import vlmexp
from vlmexp.collator.batch import Collator
from vlmexp.files import digest, file_digest

_LIBRARIES = ("transformers", "tokenizers", "pillow", "av")
_ROOMS = ("collator", "data", "models")  # of this package: the code that makes tokens
# Attributes that change no count, that other attributes decide, or that are described on their own.
_ASIDE = {"processor", "template", "masking", "share_images", "media_ids", "_special", "_rendered", "views", "features"}


def collator_identity(collator: Collator) -> str:
    """A hash that changes with whatever may change how many tokens an example becomes.

    That is the tokenizer, the image and video processors, the chat template and the messages, how media are decoded,
    and the code: this package's, the libraries' and, where it comes with a model, the processor's.
    """
    tokenizer = collator.processor.tokenizer
    about = {
        "collator": _attributes(collator),
        "template": _attributes(collator.template),
        "chat_template": collator.processor.chat_template,
        "tokenizer": [_tokenizer(tokenizer), [file_digest(Path(file)) for file in _source_files([tokenizer])]],
        "looks": looks_identity(collator),
    }
    return digest(about)


def looks_identity(collator: Collator) -> str:
    """A hash that changes with whatever may change the pixels that the model sees of a file."""
    processor: Any = collator.processor
    parts = [part for name in processor.get_attributes() if (part := getattr(processor, name, None)) is not None]
    seeing = [part for part in parts if not hasattr(part, "get_vocab")]
    about = {
        "media": _text(collator.media),
        "processor": {name: _text(value) for name, value in vars(processor).items() if _is_plain(value)},
        "parts": [_text(part.to_dict()) for part in seeing],
        "sources": [file_digest(Path(file)) for file in _source_files([processor, *seeing])],
        "code": _own_code(),
        "versions": {library: version(library) for library in _LIBRARIES},
    }
    return digest(about)


def _attributes(part: Any) -> dict[str, str]:
    return {name: _text(value) for name, value in vars(part).items() if name not in _ASIDE}


def _text(value: Any) -> str:
    """What a value is in words, the same in every process: a set of texts has another order in each."""
    if isinstance(value, (set, frozenset)):
        return f"set {sorted(map(_text, value))}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__} {[*map(_text, value)]}"
    if isinstance(value, dict):
        return f"dict {[(_text(name), _text(item)) for name, item in value.items()]}"
    if dataclasses.is_dataclass(value):
        items = [(field.name, _text(getattr(value, field.name))) for field in dataclasses.fields(value)]
        return f"{type(value).__name__} {items}"
    return repr(value)


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | bool | list | tuple | dict | None)


def _tokenizer(tokenizer: Any) -> list[str]:
    """The hash of a tokenizer's rules and words, and what it is told to do with special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = _lasting(backend.to_str()) if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    options = {name: value for name, value in tokenizer.init_kwargs.items() if _is_plain(value)}
    return [hashlib.sha256(rules.encode()).hexdigest(), repr(sorted(options.items())), tokenizer.padding_side]


def _lasting(rules: str) -> str:
    """The text of a tokenizer's rules without how the last call padded and cut, which stands at its beginning."""
    return rules[max(0, rules.find('"added_tokens":')) :]


def _source_files(parts: list[Any]) -> Iterator[str]:
    for part in parts:
        file = inspect.getsourcefile(type(part))
        if file is not None:
            yield file


@functools.cache
def _own_code() -> str:
    folder = Path(vlmexp.__file__).parent
    files = sorted(file for room in _ROOMS for file in (folder / room).rglob("*.py"))
    return digest([[str(file.relative_to(folder)), file_digest(file)] for file in files])
