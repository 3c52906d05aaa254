"""Loading a model and its processor by class name, with the Auto classes to fall back on."""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin

from vlmexp.errors import UserError

EMBEDDED = "vlmexp:"  # prefix of the ids of checkpoints that the package ships
ASSETS = Path(__file__).parent.parent / "assets"
Note = Callable[[str], None]  # told of everything that is done differently from what was asked
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from and how it is to be loaded: the `model` group, as plain values."""

    id: str
    revision: str | None = None
    model_class: str | None = None
    processor_class: str | None = None
    import_path: str = "transformers"
    dtype: str = "bfloat16"
    device_map: str | None = "auto"
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    random_init: bool = False
    quantization: Mapping[str, Any] | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    processor_kwargs: Mapping[str, Any] = field(default_factory=dict)

    @property
    def location(self) -> str:
        """The Hub id or the local folder."""
        if self.id.startswith(EMBEDDED):
            folder = ASSETS / self.id.removeprefix(EMBEDDED)
            if not (folder / "config.json").exists():
                shipped = ", ".join(f"{EMBEDDED}{path.name}" for path in sorted(ASSETS.iterdir()))
                raise UserError(f"model.id={self.id}: the package ships no such checkpoint; it ships {shipped}.")
            return str(folder)
        return str(Path(self.id).expanduser()) if Path(self.id).expanduser().is_dir() else self.id


def load_processor(source: ModelSource, note: Note) -> ProcessorMixin:
    """The processor of a checkpoint.

    Raises:
        UserError: the checkpoint cannot be reached or has no processor.
    """
    loader = _class(source.processor_class, source.import_path, "AutoProcessor", "model.processor_class", note)
    processor = _from_pretrained(loader, source, source.location, dict(source.processor_kwargs))
    if not isinstance(processor, ProcessorMixin):
        raise UserError(f"model.id={source.id} has a {type(processor).__name__} and no processor for images and text.")
    return processor


def load_model(source: ModelSource, note: Note, seed: int = 0) -> PreTrainedModel:
    """The model of a checkpoint, on its device and in evaluation mode.

    `device_map=auto` takes the GPU (several, if there are and one process uses them) or else the CPU. On a CPU the
    weights are float32 whatever `dtype` says. Only safetensors are read, never a pickle, unless `model_kwargs`
    say otherwise. With `random_init` the weights are drawn anew from `seed`.

    Raises:
        UserError: the checkpoint cannot be reached, or its weights do not fit the class.
    """
    loader = _class(source.model_class, source.import_path, "AutoModelForImageTextToText", "model.model_class", note)
    on_cpu = source.device_map == "cpu" or not torch.cuda.is_available()
    if source.device_map == "cuda" and on_cpu:
        raise UserError("model.device_map=cuda: torch sees no GPU here. Use model.device_map=auto or cpu.")
    dtype = torch.float32 if on_cpu else getattr(torch, source.dtype)
    if source.random_init:
        config = _from_pretrained(transformers.AutoConfig, source, source.location, {})
        torch.manual_seed(seed)
        build: Any = loader if isinstance(loader, type) and issubclass(loader, PreTrainedModel) else loader.from_config
        return build(config).to(dtype=dtype, device="cpu" if on_cpu else "cuda").eval()
    arguments: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **source.model_kwargs}
    if not on_cpu:
        local_rank = os.environ.get("LOCAL_RANK")
        arguments["device_map"] = {"": int(local_rank)} if local_rank is not None else source.device_map
    if source.attn_implementation:
        arguments["attn_implementation"] = source.attn_implementation
    model, info = _from_pretrained(loader, source, source.location, {**arguments, "output_loading_info": True})
    for kind in ("missing_keys", "mismatched_keys"):
        if names := [str(name) for name in info.get(kind, ())]:
            raise UserError(
                f"model.id={source.id} does not fit {type(model).__name__}: {len(names)} {kind.replace('_', ' ')}, "
                f"for example {', '.join(sorted(names)[:3])}. Is model.model_class right?"
            )
    if names := [str(name) for name in info.get("unexpected_keys", ())]:
        note(
            f"{type(model).__name__} does not use {len(names)} weights of {source.id}, for example {sorted(names)[0]}."
        )
    return model.eval()


def _class(name: str | None, import_path: str, fallback: str, option: str, note: Note) -> Any:
    """The named class of the module, or the Auto class if it is not there."""
    if name is None:
        return getattr(transformers, fallback)
    try:
        return getattr(importlib.import_module(import_path), name)
    except (ImportError, AttributeError):
        note(f"{option}={name} is not in {import_path}: using {fallback}.")
        return getattr(transformers, fallback)


def _from_pretrained(loader: Any, source: ModelSource, location: str, arguments: dict[str, Any]) -> Any:
    """`loader.from_pretrained`, with what goes wrong in a sentence."""
    try:
        return loader.from_pretrained(
            location, revision=source.revision, trust_remote_code=source.trust_remote_code, **arguments
        )
    except (OSError, ValueError, KeyError, ImportError, TypeError, RuntimeError, SafetensorError) as error:
        log.debug("from_pretrained failed", exc_info=True)
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"model.id={source.id} could not be loaded by {loader.__name__}: {reason[:400]} "
            "(Is the id right, is the Hub reachable, does a gated model have HF_TOKEN?)"
        ) from error
