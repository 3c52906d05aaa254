"""What a training run leaves behind: the adapter, and a merged model that needs nothing of ours."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)

from vlmexp.errors import UserError
from vlmexp.files import new_folder, read_json, write_json
from vlmexp.models.adapter_start import Start, as_plain_lora
from vlmexp.models.ends import end_ids
from vlmexp.models.load import EMBEDDED, ModelSource, Note, load_processor
from vlmexp.storage import writing

AUTO_MODEL = "AutoModelForImageTextToText"

# Writes model and processor to an empty folder. It returns the backend of AutoImageProcessor that gives the pixels of
# training there; None: the one that transformers takes by itself.
Writer = Callable[[PreTrainedModel, ProcessorMixin, Path], str | None]


def save_adapter(
    model: PreTrainedModel | PeftModel,
    processor: ProcessorMixin,
    folder: Path,
    base: str | None = None,
    start: Start | None = None,
) -> None:
    """Write adapter (or, without one, the whole model) and processor; the folder appears complete or not at all.

    Args:
        base: what adapter_config.json calls the base model, in the place of the path that it was loaded from.
        start: what the adapter has taken out of the base weights; written is one for the base as it is.
    """
    with writing(folder), new_folder(folder) as temporary:
        model.save_pretrained(str(temporary))
        if start is not None:
            as_plain_lora(temporary, start)
        processor.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        if base is not None and (path := temporary / "adapter_config.json").exists():
            write_json(path, read_json(path) | {"base_model_name_or_path": base})


def write_pretrained(model: PreTrainedModel, processor: ProcessorMixin, folder: Path) -> None:
    """Write both as they are: right for every family that transformers has a class for."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def find_writer(*names: str | None) -> Writer:
    """The writer of the first dotted path that is given; `write_pretrained` if none is.

    Raises:
        UserError: there is no such function.
    """
    name = next((name for name in names if name is not None), None)
    if name is None:
        return write_pretrained
    module, _, function = name.rpartition(".")
    try:
        writer = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError):
        raise UserError(
            f"export.writer={name}: there is no such function; it is a dotted path such as "
            "vlmexp.models.export.write_pretrained."
        ) from None
    return writer  # type: ignore[no-any-return]


def weight_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Size of tensors as they are in memory, which is that of their file."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def end_answers_with(model: PreTrainedModel, tokenizer: Any, end_id: int | None) -> None:
    """Let `generate` stop where the evaluation does, the end that the model was trained to say included."""
    model.generation_config.eos_token_id = end_ids(model, tokenizer, end_id)


def stored_source(folder: Path, source: ModelSource) -> ModelSource:
    """How a whole model in a folder is loaded, on the devices and in the dtype of the model that it came from."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=source.trust_remote_code)
    whole = replace(source, id=str(folder), revision=None, random_init=False, quantization=None, processor_kwargs={})
    return with_auto_classes(whole, config)


def with_auto_classes(source: ModelSource, config: PreTrainedConfig) -> ModelSource:
    """The source with transformers' Auto classes where they know such a configuration, as it is where they do not."""
    if type(config) not in AutoModelForImageTextToText._model_mapping and not getattr(config, "auto_map", None):
        return source
    return replace(source, model_class=AUTO_MODEL, processor_class="AutoProcessor", import_path="transformers")


def load_stored_processor(source: ModelSource, image_backend: str | None, note: Note) -> ProcessorMixin:
    """The processor beside a written model, with the image backend that its writer named."""
    processor = load_processor(source, note)
    if image_backend is not None:
        processor.image_processor = AutoImageProcessor.from_pretrained(source.id, backend=image_backend)
    return processor


def loading(source: ModelSource, config: PreTrainedConfig, image_backend: str | None = None) -> dict[str, str | None]:
    """What somebody else has to write to load a model, for run.json and the model card.

    Returns:
        model_class, processor_class and the import_path of both; `register`, the module whose import makes the Auto
        classes know the model (None for transformers' own); and `image_backend`, see Writer.
    """
    module = type(config).__module__
    known = module.startswith(("transformers.", "transformers_modules.")) or source.import_path != "transformers"
    return {
        "model_class": source.model_class or AUTO_MODEL,
        "processor_class": source.processor_class or "AutoProcessor",
        "import_path": source.import_path,
        "register": None if known else module.rpartition(".")[0] or module,
        "image_backend": image_backend,
    }


def is_on_hub(source: ModelSource) -> bool:
    """Whether the model's id is one of the Hub."""
    return not source.id.startswith(EMBEDDED) and not Path(source.location).exists()


def public_id(source: ModelSource) -> str:
    """The base model's name for others: its id, but of a local folder the last part only."""
    return source.id if is_on_hub(source) or source.id.startswith(EMBEDDED) else Path(source.location).name
