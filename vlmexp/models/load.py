"""Loading a model and its processor by class name, with the Auto classes to fall back on."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

from vlmexp.errors import UserError, closest, shown
from vlmexp.models import checkpoint
from vlmexp.models.fit import check_class, check_processor, check_type, check_weight_names
from vlmexp.models.generation import mend, valid_file
from vlmexp.models.load_errors import LOADING_ERRORS, loading_error
from vlmexp.models.modules import DEFAULT_PATTERNS, ModulePatterns
from vlmexp.models.options import check_attention, check_formats, check_model_options, check_processor_options
from vlmexp.models.patches import embed_patches_by_product, note_slow_convolutions
from vlmexp.models.processor_files import lost_class, named_classes
from vlmexp.models.quantization import keep_trainable, quantization_config

EMBEDDED = "vlmexp:"  # prefix of the ids of checkpoints that the package ships
ASSETS = Path(__file__).parent.parent / "assets"
MODEL_AUTO, PROCESSOR_AUTO = "AutoModelForImageTextToText", "AutoProcessor"
_NOTHING_TO_QUANTISE = "model.random_init=true has no weights to quantise: choose peft=lora or peft=none."
# Arguments of from_pretrained that move the weights to files of other names.
OTHER_FILES = {"use_safetensors", "variant", "subfolder"}
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
    modules: ModulePatterns = DEFAULT_PATTERNS
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
        return str(checkpoint.local_folder(self.id) or self.id)


def check_model(source: ModelSource, note: Note, weights: bool = True) -> ProcessorMixin:
    """The processor of a model, after all that can be known without reading weights.

    It is quick and reads little, so that a run can begin with it: a wrong id does not show after the data are made.

    Args:
        weights: look at the files of the weights, and whether they can be quantised here; without it they need not be
            there.

    Raises:
        UserError: the checkpoint cannot be reached or is not whole; it is no vision-language model, or needs code of
            its own; class or processor do not fit it; it cannot be quantised as asked.
    """
    if weights and quantization_config(source.quantization, source.modules) and source.random_init:
        raise UserError(_NOTHING_TO_QUANTISE)
    check_formats(source.model_kwargs, source.trust_remote_code)
    loader = _class(source, "model_class", MODEL_AUTO, note)
    config = _config(source)
    check_attention(source.attn_implementation)
    check_model_options(source.model_kwargs, config, loader)
    if weights:
        _device(source)
    if checkpoint.only_cached(source.location, source.revision):
        note(f"The Hub cannot be reached: {source.id} is taken from the cache as it is there.")
    check_class(source.id, config, loader)
    if weights and not source.random_init and not OTHER_FILES & source.model_kwargs.keys():
        with _sentences(source, loader):
            checkpoint.check_weights(source.id, source.location, source.revision)
    processor = load_processor(source, note)
    check_processor(source.id, processor, config)
    if source.processor_kwargs:
        plain = dataclasses.replace(source, processor_kwargs={})
        check_processor_options(source.processor_kwargs, processor, lambda: load_processor(plain, lambda _: None))
    return processor


def load_processor(source: ModelSource, note: Note) -> ProcessorMixin:
    """The processor of a checkpoint.

    Raises:
        UserError: the checkpoint cannot be reached, has no processor, or names a class that there is no more.
    """
    loader = _class(source, "processor_class", PROCESSOR_AUTO, note)
    try:
        with _sentences(source, loader):
            processor = loader.from_pretrained(source.location, **_origin(source), **source.processor_kwargs)
        if isinstance(processor, ProcessorMixin):
            return processor
    except UserError:
        if lost := lost_class(source.id, source.location, source.revision):
            raise UserError(lost) from None
        raise
    found = f"model.id={source.id} has a {type(processor).__name__} and no processor for images and text."
    raise UserError(lost_class(source.id, source.location, source.revision) or found)


def load_model(source: ModelSource, note: Note, seed: int = 0) -> PreTrainedModel:
    """The model of a checkpoint, on its device and in evaluation mode.

    `device_map=auto` takes the GPU (several, if there are and one process uses them) or else the CPU. On a CPU the
    weights are float32 whatever `dtype` says, those apart that `quantization` puts into 4 or 8 bits. Only safetensors
    are read, never a pickle, unless `model_kwargs` say otherwise. With `random_init` the weights are drawn anew from
    `seed`.

    Raises:
        UserError: the checkpoint cannot be reached, or its weights do not fit the class.
    """
    loader = _class(source, "model_class", MODEL_AUTO, note)
    on_cpu = _device(source) == "cpu"
    dtype = torch.float32 if on_cpu else getattr(torch, source.dtype)
    quantization = quantization_config(source.quantization, source.modules)
    config = _config(source)
    check_class(source.id, config, loader)
    if source.random_init:
        if quantization:
            raise UserError(_NOTHING_TO_QUANTISE)
        torch.manual_seed(seed)
        drawn = _build(loader)(config).to(dtype=dtype, device="cpu" if on_cpu else "cuda").eval()
        mend(drawn, source.id, note)
        embed_patches_by_product(drawn)
        return drawn
    arguments: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **source.model_kwargs}
    if not on_cpu:
        local_rank = os.environ.get("LOCAL_RANK")
        arguments["device_map"] = {"": int(local_rank)} if local_rank is not None else source.device_map
    if source.attn_implementation:
        arguments["attn_implementation"] = source.attn_implementation
    if quantization:
        arguments["quantization_config"] = quantization
    with _sentences(source, loader):
        if not OTHER_FILES & source.model_kwargs.keys():
            checkpoint.check_weights(source.id, source.location, source.revision)
        local_only = checkpoint.only_cached(source.location, source.revision)
        if generation := valid_file(source.id, source.location, source.revision, local_only, note):
            arguments["generation_config"] = generation
        # Tensors of a wrong shape are reported like the missing ones, below.
        model, info = loader.from_pretrained(
            source.location,
            **_origin(source),
            output_loading_info=True,
            **{"ignore_mismatched_sizes": True, **arguments},
        )
    check_weight_names(source.id, model, info, source.modules, note)
    keep_trainable(model)
    mend(model, source.id, note)
    embed_patches_by_product(model)
    note_slow_convolutions(model, torch.__version__, not on_cpu, note)
    return model.eval()


def empty_model(source: ModelSource) -> PreTrainedModel | None:
    """The model of a checkpoint with its modules and without weights, on no device: what it is made of.

    None where that takes the checkpoint's own code, which need not be fit for it.
    """
    if source.trust_remote_code:
        return None
    loader = _class(source, "model_class", MODEL_AUTO, lambda _: None)
    with torch.device("meta"):
        model = _build(loader)(_config(source))
    assert isinstance(model, PreTrainedModel)
    return model


def _build(loader: Any) -> Callable[[PreTrainedConfig], Any]:
    """What makes a model of a configuration, without the weights of a checkpoint."""
    is_model = isinstance(loader, type) and issubclass(loader, PreTrainedModel)
    build: Callable[[PreTrainedConfig], Any] = loader if is_model else loader.from_config
    return build


def commit(source: ModelSource) -> str | None:
    """The Hub's commit that a loaded model is of; None for a local folder."""
    with _sentences(source, transformers.AutoConfig):
        return checkpoint.commit(source.location, source.revision)


def device_name(model: Any) -> str:
    """What a model computes on: the name of the GPU, or `cpu`."""
    device = model.device
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type)


def _config(source: ModelSource) -> PreTrainedConfig:
    with _sentences(source, transformers.AutoConfig):
        values = checkpoint.read_config(source.id, source.location, source.revision)
        check_type(source.id, values, source.trust_remote_code)
        return transformers.AutoConfig.from_pretrained(source.location, **_origin(source))


def _origin(source: ModelSource) -> dict[str, Any]:
    # transformers asks on the terminal whether to trust code if it is not told.
    origin = {"revision": source.revision, "trust_remote_code": bool(source.trust_remote_code)}
    return origin | ({"local_files_only": True} if checkpoint.only_cached(source.location, source.revision) else {})


def _device(source: ModelSource) -> str:
    """What the model is loaded to: `cpu` or `cuda`.

    Raises:
        UserError: a GPU is asked for that is not there.
    """
    asked, gpus = source.device_map or "auto", torch.cuda.device_count() if torch.cuda.is_available() else 0
    kind, _, number = asked.partition(":")
    if kind == "cuda" and int(number or 0) >= gpus:
        raise UserError(
            f"model.device_map={asked}: torch sees {gpus or 'no'} GPU{'s' * (gpus > 1)} here. Use "
            "model.device_map=auto or cpu."
        )
    return "cpu" if kind == "cpu" or not gpus else "cuda"


def _class(source: ModelSource, option: str, fallback: str, note: Note) -> Any:
    """The class that `model_class` or `processor_class` names, or the Auto class.

    A name that is not there is a mistake, unless the checkpoint's own files name it: it is of another transformers
    then, and the Auto class may know what to do.

    Raises:
        UserError: the module cannot be imported, or it has no such class, or that is none that loads checkpoints.
    """
    name = getattr(source, option)
    if name is None:
        return getattr(transformers, fallback)
    try:
        module = importlib.import_module(source.import_path)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"model.import_path={source.import_path} cannot be imported: {error}. Is its folder on PYTHONPATH?"
        ) from error
    found = getattr(module, name, None)
    if found is None:
        if source.import_path != "transformers" or name not in named_classes(source.location, source.revision):
            raise UserError(
                f"model.{option}={shown(name)} is not in {source.import_path}{closest(name, dir(module)) or '.'} "
                f"null takes {fallback}."
            )
        note(f"model.{option}={name} is not in {source.import_path}: using {fallback}.")
        return getattr(transformers, fallback)
    is_model = isinstance(found, type) and issubclass(found, PreTrainedModel)
    if option == "model_class" and not is_model and not hasattr(found, "from_config"):
        raise UserError(f"model.model_class={name}: this is no class of a model; null takes {fallback}.")
    if not hasattr(found, "from_pretrained"):
        raise UserError(f"model.{option}={name}: this is nothing that loads a checkpoint (it has no from_pretrained).")
    return found


@contextlib.contextmanager
def _sentences(source: ModelSource, loader: Any) -> Iterator[None]:
    """Say in a sentence what goes wrong while a checkpoint is read."""
    try:
        yield
    except LOADING_ERRORS as error:
        log.debug("loading failed", exc_info=True)
        raise loading_error(error, source.id, source.revision, loader.__name__) from error
