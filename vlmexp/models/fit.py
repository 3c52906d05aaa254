"""Whether the pieces of a checkpoint belong together: configuration, class, weights and processor."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
import transformers
from transformers import AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel, ProcessorMixin
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from vlmexp.errors import UserError
from vlmexp.models.modules import PARTS, ModulePatterns

# Sizes that image processor and vision tower have to agree on: name there, name in vision_config.
SHARED_SIZES = {
    "patch_size": "patch_size",
    "temporal_patch_size": "temporal_patch_size",
    "merge_size": "spatial_merge_size",
}
# Attributes of a processor or a tokenizer: a token that stands for a medium in a text; the same of a model's
# configuration: a token in whose place the model puts a medium.
PLACEHOLDERS = ("image_token", "video_token")
PLACES = ("image_token_id", "image_token_index", "video_token_id", "video_token_index")


def _code_of_the_hub(config: Mapping[str, Any]) -> str | None:
    """A repository of the Hub whose kernels a configuration, or a part of one, asks for: they would be run."""
    for name, value in config.items():
        if isinstance(value, Mapping) and (inner := _code_of_the_hub(value)):
            return inner
        texts = value.values() if isinstance(value, Mapping) else [value]
        if "attn_implementation" in name and (found := [t for t in texts if isinstance(t, str) and "/" in t]):
            return found[0]
    return None


def check_type(model_id: str, config: Mapping[str, Any], trust_remote_code: bool) -> None:
    """Whether transformers, or the code that a checkpoint brings along, knows what a config.json describes.

    Raises:
        UserError: it does not, or its code is needed and not trusted.
    """
    kind = config.get("model_type")
    if not trust_remote_code and (kernel := _code_of_the_hub(config)):
        raise UserError(
            f"model.id={model_id}: its config.json has attention computed by {kernel}, which is code of the Hub: read "
            "that code, then set model.trust_remote_code=true; or take the entry out."
        )
    if kind in CONFIG_MAPPING:
        return
    if "AutoConfig" in config.get("auto_map", {}):
        if trust_remote_code:
            return
        raise UserError(
            f"model.id={model_id} (model_type {kind}) runs only with Python code of its own: read that code, then set "
            "model.trust_remote_code=true. Without such code run all families of transformers, InternVL2 "
            "(model=internvl2) and Phi-3-Vision (model=phi3vision)."
        )
    raise UserError(
        f"model.id={model_id}: transformers {transformers.__version__} has no model_type {kind!r}, which its "
        "config.json names. Is this a checkpoint in transformers' format, and would a newer transformers know it?"
    )


def check_class(model_id: str, config: PreTrainedConfig, loader: Any) -> None:
    """Whether a class can hold the model that a configuration describes.

    Raises:
        UserError: it is another family's class, or the model is no vision-language model.
    """
    holds = (config.architectures or [config.model_type])[0]
    if loader is AutoModelForImageTextToText:
        known = type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        if not known and loader.__name__ not in (getattr(config, "auto_map", None) or {}):
            raise UserError(
                f"model.id={model_id} holds a {holds} (model_type {config.model_type}), which is no vision-language "
                "model that transformers knows. If it is one, name its class with model.model_class."
            )
        return
    expected = getattr(loader, "config_class", None)
    if expected is not None and not isinstance(config, expected):
        raise UserError(
            f"model.id={model_id} holds a {holds} (model_type {config.model_type}), and "
            f"model.model_class={loader.__name__} is for model_type {expected.model_type}: "
            "choose another class, or model.model_class=null."
        )


def check_processor(model_id: str, processor: ProcessorMixin, config: PreTrainedConfig) -> None:
    """Compare the processor with the model's configuration: image placeholder and sizes of image patches.

    Raises:
        UserError: they differ; deep in the model this would be "image features and image tokens do not match".
    """
    theirs = next(
        (i for name in ("image_token_id", "image_token_index") if (i := _number(config, name)) is not None), None
    )
    # Gemma 3's processor has one token for an image in the text and another for each of its places in the tokens.
    owners = (processor, processor.tokenizer)
    marks = {mark for owner in owners if (mark := _number(owner, "image_token_id")) is not None}
    if theirs is not None and marks and theirs not in marks:
        raise UserError(
            f"model.id={model_id}: its processor marks images with token {' or '.join(map(str, sorted(marks)))}, its "
            f"config.json says {theirs}: is its tokenizer.json there, and of the same model?"
        )
    vision = getattr(config, "vision_config", None)
    for name, its_name in SHARED_SIZES.items():
        ours, theirs = _number(getattr(processor, "image_processor", None), name), _number(vision, its_name)
        if None not in (ours, theirs) and ours != theirs:
            raise UserError(
                f"model.id={model_id}: the image processor has {name}={ours}, and the model's vision_config has "
                f"{its_name}={theirs}. Use the processor that came with the model."
            )


def _number(owner: Any, name: str) -> int | None:
    value = getattr(owner, name, None)
    return value if isinstance(value, int) else None


def check_weight_names(
    model_id: str,
    model: PreTrainedModel,
    info: Mapping[str, Collection[Any]],
    modules: ModulePatterns,
    note: Callable[[str], None],
) -> None:
    """Compare names and shapes of the checkpoint's tensors with the model's; `info` is transformers' loading info.

    Tensors that the model does not use are noted. They are an error beside missing ones: the class is the wrong one.

    Raises:
        UserError: tensors are missing, or have other shapes.
    """
    name = type(model).__name__
    missing, unexpected = (sorted(map(str, info.get(kind, ()))) for kind in ("missing_keys", "unexpected_keys"))
    left_out = _listed(unexpected, modules)
    if missing and unexpected:
        raise UserError(
            f"model.id={model_id} does not fit {name}: {_listed(missing, modules)} of its weights are missing, and "
            f"{left_out} are not of this class. Is model.model_class right?"
        )
    if missing:
        raise UserError(
            f"model.id={model_id} is not whole: {_listed(missing, modules)} of the weights of {name} are missing. "
            "Copy or export it again; if that does not help, is model.model_class right?"
        )
    if mismatched := sorted(info.get("mismatched_keys", ())):
        tensor, has, needs = mismatched[0]
        raise UserError(
            f"model.id={model_id}: {_listed([item[0] for item in mismatched], modules)} of its weights have another "
            f"shape than its config.json says ({tensor} has {list(has)} and should have {list(needs)}): "
            "they belong to different models."
        )
    if unexpected:
        note(f"{name} does not use all weights of {model_id}: {left_out} are left out.")


def _listed(names: list[str], modules: ModulePatterns) -> str:
    """`"3 (2 vision, 1 language; for example a.b, a.c, d)"`."""
    counts = Counter(map(modules.part_of, names))
    parts = ", ".join(f"{counts[part]} {part}" for part in PARTS if counts[part])
    return f"{len(names)} ({parts}; for example {', '.join(names[:3])})"


def check_forward(
    model_id: str, model: PreTrainedModel, processor: ProcessorMixin, batch: Mapping[str, torch.Tensor]
) -> None:
    """Run the model once on a batch of prompts, as the collator makes them, before hours are spent on many.

    Raises:
        UserError: tokens can reach the model that it has no embedding for; the model refuses the batch; its logits are
            not finite.
    """
    name, embeddings = type(model).__name__, model.get_input_embeddings()
    assert isinstance(embeddings.weight, torch.Tensor)
    rows = len(embeddings.weight)
    largest = max(_ids_of_texts(processor, model.config) | {int(batch["input_ids"].max())})
    if largest >= rows:  # on a GPU an assertion that names nothing and ends the process
        raise UserError(
            f"model.id={model_id}: the tokenizer has ids up to {largest}, and {name} has embeddings for {rows} tokens. "
            "Use the tokenizer that came with the model."
        )
    try:
        with torch.inference_mode():
            inputs = {k: v.to(model.device, model.dtype if v.is_floating_point() else None) for k, v in batch.items()}
            # Logits of thousands of image tokens over a large vocabulary would take gigabytes.
            last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
            logits = model(**inputs, **last).logits
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, KeyError, IndexError, RuntimeError) as error:
        raise UserError(
            f"model.id={model_id}: {name} does not take what its {type(processor).__name__} makes of an image and a "
            f"question: {' '.join(str(error).split())[:400]}"
        ) from error
    if not bool(torch.isfinite(logits[:, -1]).all()):
        raise UserError(
            f"model.id={model_id}: the logits of {name} in {str(model.dtype).removeprefix('torch.')} are not finite. "
            "Are the weights damaged, or does it need model.dtype=bfloat16 or float32?"
        )


def _ids_of_texts(processor: ProcessorMixin, config: PreTrainedConfig) -> set[int]:
    """Ids of the tokens that can reach the model.

    A processor may replace a placeholder by tokens of another name, as InternVL's does with `<video>`: such a
    placeholder never reaches the model, whose configuration does not know it, and needs no embedding.
    """
    vocabulary, owners = processor.tokenizer.get_vocab(), (processor, processor.tokenizer)
    marks = {vocabulary.get(getattr(owner, name, None)) for owner in owners for name in PLACEHOLDERS}
    replaced = marks - {_number(config, name) for name in PLACES}
    return {token for token in vocabulary.values() if token not in replaced}
