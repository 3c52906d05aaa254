"""What a checkpoint says about generating: kept as published where it is valid, and without a say in our decoding."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from transformers import GenerationConfig
from transformers.utils.hub import cached_file

FILE = "generation_config.json"
Note = Callable[[str], None]


@contextlib.contextmanager
def own_decoding(model: nn.Module) -> Iterator[None]:
    """Within the block `generate` takes no field from the checkpoint, only what it is given.

    It fills what its caller leaves open with the `generation_config` of the model, or of a part that does the work.
    """
    parts: list[Any] = [part for part in model.modules() if "generation_config" in vars(part)]
    published = [part.generation_config for part in parts]
    try:
        for part in parts:
            part.generation_config = GenerationConfig()
        yield
    finally:
        for part, config in zip(parts, published, strict=True):
            part.generation_config = config


def valid_file(name: str, location: str, revision: str | None, local_only: bool, note: Note) -> GenerationConfig | None:
    """A checkpoint's generation_config.json without what is not valid; None if there is none, or all of it is.

    Args:
        name: of the checkpoint, for messages.
        location: a folder or a Hub id.
        note: is told of what is left out.
    """
    path = cached_file(
        location, FILE, revision=revision, local_files_only=local_only, _raise_exceptions_for_missing_entries=False
    )
    if path is None:
        return None
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError:
        values = None
    if not isinstance(values, dict):
        note(f"{name}: its {FILE} is no JSON object and is left out.")
        return GenerationConfig()
    return None if complaint(values) is None else _valid(values, name, note)


def mend(model: Any, name: str, note: Note) -> None:
    """Leave out of a loaded model's generation_config, wherever it is from, what transformers refuses to write."""
    config = getattr(model, "generation_config", None)
    if config is not None and complaint(values := config.to_dict()) is not None:
        model.generation_config = _valid(values, name, note)


def complaint(values: Mapping[str, Any]) -> str | None:
    """What transformers says against fields of GenerationConfig, in a sentence; None if it would write them."""
    library = logging.getLogger(GenerationConfig.__module__)
    library.disabled = True  # it warns of what it then refuses
    try:
        config = GenerationConfig(**values)
        config.validate(strict=True)
        config.to_json_string()
    except Exception as error:  # whatever a value of a wrong type leads to
        lines = str(error).splitlines()
        found = next((line.partition(": ")[2] for line in lines if line.startswith("- `")), " ".join(lines))
        return found or type(error).__name__
    finally:
        library.disabled = False
    return None


def _valid(values: Mapping[str, Any], name: str, note: Note) -> GenerationConfig:
    """As many of the values as are valid together; one that comes before another that it needs waits for it."""
    kept: dict[str, Any] = {}
    waiting = {field: value for field, value in values.items() if value is not None}
    while fitting := next((f for f in waiting if complaint({**kept, f: waiting[f]}) is None), None):
        kept[fitting] = waiting.pop(fitting)
    for field, value in waiting.items():
        reason = complaint({**kept, field: value})
        note(f"{name}: {field}={value!r} of its {FILE} is not valid and is left out. {reason}")
    return GenerationConfig(**kept)
