"""The classes that a checkpoint's processor files name, which a later transformers may have dropped or renamed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import try_to_load_from_cache
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name

FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json", "tokenizer_config.json")
CLASSES = ("image_processor_type", "video_processor_type", "feature_extractor_type", "processor_class")


def lost_class(model_id: str, location: str, revision: str | None) -> str | None:
    """A sentence about a class that the files name and the installed transformers does not have; None if it has all."""
    lost = [
        (file, *named) for file in FILES for named in _named(_content(location, file, revision)) if _is_lost(*named)
    ]
    if not lost:
        return None
    _, field, name = lost[0]
    files = sorted({file for file, *named in lost if named == [field, name]})
    return (
        f"model.id={model_id}: {field} in its {' and '.join(files)} is {name}, which transformers "
        f"{transformers.__version__} does not have: the checkpoint was written for another release. Take a newer "
        "model.revision of it, or give a copy of its folder without that field: transformers then takes the class that "
        "it has for this type of model."
    )


def named_classes(location: str, revision: str | None) -> set[str]:
    """All classes that the files of a checkpoint name, of the model and of the processor."""
    architectures = _content(location, "config.json", revision).get("architectures") or []
    return {*architectures, *(name for file in FILES for _, name in _named(_content(location, file, revision)))}


def _content(location: str, file: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of the folder or, as far as it was downloaded, of the Hub; empty without one."""
    is_local = Path(location).is_dir()
    path = Path(location, file) if is_local else try_to_load_from_cache(location, file, revision=revision)
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8")) if isinstance(path, str | Path) else {}
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _named(content: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, class) of a file, the parts of a processor included; not where the class is code of the checkpoint."""
    for part in (content, *(value for value in content.values() if isinstance(value, dict))):
        if "auto_map" not in part:
            yield from ((field, part[field]) for field in CLASSES if isinstance(part.get(field), str))


def _is_lost(field: str, name: str) -> bool:
    # Names of before that transformers itself still understands.
    name = name.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    return not hasattr(transformers, name) and get_image_processor_class_from_name(name) is None
