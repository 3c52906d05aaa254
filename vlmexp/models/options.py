"""Names and values in `model.model_kwargs`, `model.processor_kwargs` and `model.attn_implementation`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from PIL import Image
from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_flash_attn_2_available

from vlmexp.errors import UserError, closest, shown, unknown
from vlmexp.signatures import popped_names

# What any from_pretrained takes beside the options of its class: where files come from, and which.
_FILES = {
    "cache_dir", "force_download", "local_files_only", "proxies", "subfolder", "use_safetensors", "variant",
    "gguf_file", "user_agent", "tqdm_class",
}  # fmt: skip
_LOADING = ("transformers", "modeling_utils.py", "PreTrainedModel")
_PARTS = ("image_processor", "video_processor", "tokenizer", "feature_extractor")


def check_attention(name: str | None) -> None:
    """Raise a UserError if transformers has no such attention, or its package is missing."""
    if name is None or "/" in name:  # a kernel of the Hub
        return
    known = {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}
    if name not in known:
        raise unknown("model.attn_implementation", shown(name), known)
    if name == "flash_attention_2" and not is_flash_attn_2_available():
        raise UserError(
            "model.attn_implementation=flash_attention_2 needs a GPU and the package flash-attn: install it, or leave "
            "the option out."
        )


def check_formats(options: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Raise a UserError for weights in GGUF, or if they may be read from pickles without the user's word for it."""
    if options.get("gguf_file") is not None:
        raise UserError(
            f"model.model_kwargs.gguf_file={shown(str(options['gguf_file']))}: weights are read from safetensors, "
            "which GGUF files are converted from: take the checkpoint that they were made of."
        )
    use_safetensors = options.get("use_safetensors", True)
    if not isinstance(use_safetensors, bool):
        raise UserError(f"model.model_kwargs.use_safetensors={shown(repr(use_safetensors))} must be true or false.")
    if not use_safetensors and not trust_remote_code:
        raise UserError(
            "model.model_kwargs.use_safetensors=false has pickled weights read, which can run code: take a revision "
            "with safetensors, or, if you trust it, set model.trust_remote_code=true as well."
        )


def check_model_options(options: Mapping[str, Any], config: PreTrainedConfig, loader: Any) -> None:
    """Raise a UserError for a name that neither from_pretrained, nor the class, nor the configuration has."""
    builds = inspect.signature(loader.__init__).parameters if _is_model(loader) else {}
    known = _FILES | popped_names(*_LOADING, "from_pretrained") | config.to_dict().keys() | builds.keys()
    for name, value in options.items():
        if name not in known and not hasattr(config, name):
            raise _unknown("model_kwargs", name, value, known, loader.__name__)
        if isinstance(getattr(config, name, None), bool) and not isinstance(value, bool):
            raise UserError(f"model.model_kwargs.{name}={shown(repr(value))} must be true or false.")


def check_processor_options(
    options: Mapping[str, Any], processor: ProcessorMixin, load_plain: Callable[[], ProcessorMixin]
) -> None:
    """Raise a UserError for a name that no part of the processor has, and for a value that it cannot work with.

    Args:
        processor: with the options, which it may have taken up whatever they are called.
        load_plain: gives the same without them: what that has can be set.
    """
    owner, parts = type(processor).__name__, _parts(processor)
    known = {"use_fast", "backend", "chat_template", *_FILES}
    for part in parts:
        accepted = getattr(getattr(part, "valid_kwargs", None), "__annotations__", {})
        known |= {*accepted, *inspect.signature(type(part).__init__).parameters}
    for name, value in options.items():
        if name not in known and not any(hasattr(type(part), name) for part in parts):
            plain = _parts(load_plain())
            if not any(hasattr(part, name) or name in getattr(part, "init_kwargs", {}) for part in plain):
                names = {name for part in plain for name in vars(part) if not name.startswith("_")}
                raise _unknown("processor_kwargs", name, value, known | names, owner)
        if not isinstance(value, bool) and any(isinstance(getattr(type(part), name, None), bool) for part in parts):
            raise UserError(f"model.processor_kwargs.{name}={shown(repr(value))} must be true or false.")
    given = "; ".join(f"model.processor_kwargs.{name}={shown(value)}" for name, value in options.items())
    try:
        processor.image_processor(images=Image.new("RGB", (64, 64), "gray"), return_tensors="pt")  # type: ignore[attr-defined]
    except Exception as error:  # whatever a processor says of an option
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise UserError(f"{given}: {owner} cannot work so: {reason.rstrip('.')}.") from None


def _unknown(group: str, name: str, value: Any, known: Any, owner: str) -> UserError:
    near = closest(name, known) or f". It has, among others: {', '.join(sorted(known)[:20])}."
    return UserError(f"model.{group}.{name}={shown(value)}: {owner} has no option {name!r}{near}")


def _parts(processor: ProcessorMixin) -> list[Any]:
    """The processor and what it is made of."""
    return [processor, *(part for name in _PARTS if (part := getattr(processor, name, None)) is not None)]


def _is_model(loader: Any) -> bool:
    return isinstance(loader, type) and issubclass(loader, PreTrainedModel)
