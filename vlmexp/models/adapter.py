"""PEFT adapters: attach, load, merge."""

from __future__ import annotations

import copy
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import peft
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND
from peft.utils.other import ModulesToSaveWrapper
from torch.utils._pytree import tree_map
from transformers import PreTrainedModel

from vlmexp.errors import UserError, closest
from vlmexp.models.adapter_kinds import KEPT_CLASSES, require_kept
from vlmexp.models.modules import DEFAULT_PATTERNS, PARTS, ModulePatterns
from vlmexp.models.patches import embed_patches_by_product


def peft_config(class_name: str | None, options: Mapping[str, Any]) -> peft.PeftConfig | None:
    """The PEFT configuration of the `peft` group; None for full fine-tuning.

    Raises:
        UserError: the configuration class refuses a value, or such an adapter cannot be kept or merged.
    """
    if class_name is None:
        return None
    require_kept(class_name, options)
    try:
        config = getattr(peft, class_name)(**options)
    except (TypeError, ValueError, AttributeError, ImportError) as error:
        raise UserError(f"peft: {class_name} refuses its options: {' '.join(str(error).split())}") from None
    assert isinstance(config, peft.PeftConfig)
    return config


def attach(
    model: PreTrainedModel,
    config: peft.PeftConfig | None,
    train_parts: Collection[str] = PARTS,
    modules: ModulePatterns = DEFAULT_PATTERNS,
) -> PreTrainedModel | PeftModel:
    """Freeze the model and add a trainable adapter to some of its parts; without a config, train their own weights.

    Raises:
        UserError: the adapter cannot be placed: `target_modules` match nothing, or only what stays frozen; or the
            model has none of the parts; or a layer could not take the adapter up in the end.
    """
    if config is None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(modules.part_of(name) in train_parts)
        if not trainable_parameters(model)[0]:
            raise UserError(f"peft.train_parts={list(train_parts)}: {type(model).__name__} has no such part to train.")
        return model
    frozen = modules.pattern_of([part for part in PARTS if part not in train_parts])
    idle = _idle_names(config, model)  # before PEFT gives some modules other names
    config = copy.deepcopy(config)
    if frozen is not None:
        if not hasattr(config, "exclude_modules"):
            raise UserError(f"peft.train_parts: {type(config).__name__} cannot leave parts of a model out.")
        config.exclude_modules = _either(config.exclude_modules, frozen)
    # No `prepare_model_for_kbit_training` for a quantised model: PEFT freezes it anyway and keeps the adapter in
    # float32, and what that function adds is to double the memory of vision tower and embeddings.
    targets = getattr(config, "target_modules", None)
    try:
        adapted = peft.get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError, ImportError, RuntimeError, AttributeError) as error:
        is_placed = targets is None or isinstance(error, ImportError)
        reason = "" if is_placed else _misplaced(model, targets or (), modules, train_parts)
        unexplained = f"peft: the adapter cannot be attached to {type(model).__name__}: {error}"
        raise UserError(reason or unexplained) from error
    if idle:
        raise UserError(idle)
    for module in adapted.modules():
        if isinstance(module, ModulesToSaveWrapper):
            for own in module.modules_to_save.values():
                _hold_in_float32(own)
    embed_patches_by_product(adapted)  # an adapter of a convolution has one of its own
    _try_to_merge(adapted)
    return adapted


def try_to_attach(
    empty: PreTrainedModel, config: peft.PeftConfig | None, train_parts: Collection[str], modules: ModulePatterns
) -> PreTrainedModel | PeftModel | None:
    """The same with a model that has no weights; None where the adapter begins with what it reads off them.

    Raises:
        UserError: it cannot be placed.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # they come again when it is done
            return attach(empty, config, train_parts, modules)
    except UserError as error:
        if isinstance(error.__cause__, RuntimeError):  # torch's, and with NotImplementedError its kind
            return None
        raise


def _idle_names(config: peft.PeftConfig, model: PreTrainedModel) -> str:
    """What is wrong with a name in the adapter's options that nothing in the model has; empty if there is none.

    PEFT says nothing of it if others are found.
    """
    modules = [name for name, _ in model.named_modules()]
    weights = [name for name, _ in model.named_parameters()]
    # As PEFT compares each: a list's items with the ends of names, a text with whole names, a pattern's keys with both.
    wanted = [
        (option, item, rf"(.*\.)?{re.escape(item)}", names)
        for option, names in (("target_modules", modules), ("exclude_modules", modules), ("target_parameters", weights))
        for item in _listed(getattr(config, option, None))
    ]
    wanted += [
        ("modules_to_save", item, f".*{re.escape(item)}", modules)
        for item in _listed(getattr(config, "modules_to_save", None))
    ]
    if isinstance(pattern := getattr(config, "exclude_modules", None), str):
        wanted.append(("exclude_modules", pattern, pattern, modules))
    for option in ("rank_pattern", "alpha_pattern"):
        wanted += [(option, key, rf"(.*\.)?({key})", modules) for key in getattr(config, option, None) or ()]
    for option, item, pattern, names in wanted:
        if not any(re.fullmatch(pattern, name) for name in names):
            near = closest(item, {name.rpartition(".")[2] for name in names})
            return f"peft.{option} names {item!r}, which the model has not{near or ': leave it out.'}"
    tokens, rows = getattr(config, "trainable_token_indices", None), len(model.get_input_embeddings().weight)  # type: ignore[arg-type]
    for token in tokens if isinstance(tokens, list) else ():
        if not 0 <= token < rows:
            return f"peft.trainable_token_indices={tokens}: {token} must be at least 0 and less than {rows}."
    return ""


def _listed(value: Any) -> list[str]:
    """The names of an option that lists some."""
    return sorted(value) if isinstance(value, list | set | tuple) else []


def _try_to_merge(model: PeftModel) -> None:
    """Merge a copy of one layer of each kind, as every layer is merged at the end of a training."""
    tried = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, BaseTunerLayer) or getattr(model, "is_quantized", False):
            continue
        base: Any = layer.get_base_layer()
        if any(parameter.is_meta for parameter in base.parameters()):  # a model without weights, to be counted
            continue
        kind = type(layer), type(base), getattr(base, "bias", None) is None
        if kind in tried:
            continue
        try:
            twin: Any = copy.deepcopy(layer)
        except RuntimeError:  # weights that are views of another layer's have no copies
            continue
        tried.add(kind)
        try:
            twin.merge(safe_merge=True)
        except (ValueError, TypeError, NotImplementedError, RuntimeError, AttributeError) as error:
            raise UserError(
                f"peft: the adapter of {name.removeprefix('base_model.model.')} ({type(base).__name__}) cannot be "
                f"merged into a deployment_model: {error} Leave such layers out (peft.target_modules), or choose "
                "other options."
            ) from None


def _hold_in_float32(module: torch.nn.Module) -> None:
    """Compute a module in float32 within a model of another precision, in which its small steps would be rounded away.

    PEFT does so for an adapter's weights, but not for those of `modules_to_save`.
    """
    outside = {weight.dtype for weight in module.parameters()} & {torch.bfloat16, torch.float16}
    if not outside:
        return
    (dtype,) = outside

    def cast(value: Any, to: torch.dtype) -> Any:
        return value.to(to) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    def enter(_: torch.nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
        own = torch.float32
        return tuple(cast(value, own) for value in inputs), {name: cast(value, own) for name, value in named.items()}

    def leave(_: torch.nn.Module, __: Any, output: Any) -> Any:
        return tree_map(lambda value: cast(value, dtype), output)

    module.float()
    module.register_forward_pre_hook(enter, with_kwargs=True)
    module.register_forward_hook(leave)


def _either(mine: str | Iterable[str] | None, ours: str) -> str:
    """A pattern for whole module names that fits what either fits; a list holds ends of names, as PEFT reads it."""
    if not mine:
        return ours
    pattern = mine if isinstance(mine, str) else rf"(?:.*\.)?(?:{'|'.join(map(re.escape, sorted(mine)))})"
    return f"(?:{pattern})|(?:{ours})"


def _misplaced(
    model: PreTrainedModel, targets: str | Iterable[str], modules: ModulePatterns, train_parts: Collection[str]
) -> str:
    """Why `target_modules` match nothing that may be trained; empty if that is not the reason."""
    linear = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    wanted = f"peft.train_parts={list(train_parts)}"
    if targets == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        if set(map(modules.part_of, linear)) & set(train_parts):
            return ""
        return (
            f"{wanted}: {type(model).__name__} has no linear layer there that an adapter could be added to. "
            "Name another part too, or train the part's own weights: peft=none, or peft.modules_to_save."
        )
    pattern = re.compile(targets if isinstance(targets, str) else _either(targets, r"(?!)"))
    places = Counter(modules.part_of(name) for name, _ in model.named_modules() if pattern.fullmatch(name))
    shown = targets if isinstance(targets, str) else sorted(targets)
    if not places:
        names = sorted({name.rpartition(".")[2] for name in linear})
        return (
            f"peft.target_modules={shown} match no module of {type(model).__name__}"
            f"{closest(shown if isinstance(shown, str) else shown[0], names) or '.'} "
            f"Its linear layers are called: {', '.join(names)}."
        )
    found = " and ".join(f"{count} of the {part} part" for part, count in places.items())
    if not set(places) & set(train_parts):
        return (
            f"peft.target_modules={shown} match only frozen modules ({found}): {wanted} leaves these parts out. "
            "Add them, or choose other target_modules."
        )
    if any(pattern.fullmatch(name) for name in linear):
        return ""
    return f"peft.target_modules={shown} match {found}, but PEFT can adapt none of them: name linear layers."


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter of a training run, for inference.

    Raises:
        UserError: it is none that a training here makes: others have further files or modules loaded.
    """
    if not (folder / "adapter_model.safetensors").is_file():  # else PEFT would read a pickle
        raise UserError(f"{folder} has no adapter_model.safetensors, so it holds no adapter of a training here.")
    about = peft.PeftConfig.from_pretrained(str(folder))
    if type(about).__name__ not in KEPT_CLASSES or getattr(about, "megatron_config", None):
        raise UserError(
            f"{folder}: its adapter_config.json ({type(about).__name__}) is of no adapter that is trained here."
        )
    return PeftModel.from_pretrained(model, str(folder)).eval()


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The stand-alone model, the adapter's weights added to its own.

    Where the output layer shares its weight with the input embedding and the adapter changes one of them, they are
    untied first: added to the shared weight, the change would reach both.
    """
    if not isinstance(model, PeftModel):
        return model
    _untie_adapted_embeddings(model)
    result = model.merge_and_unload()
    assert isinstance(result, PreTrainedModel)
    if not tied_embeddings(result):
        for config in (result.config, result.config.get_text_config()):
            config.tie_word_embeddings = False
    return result


def tied_embeddings(model: PreTrainedModel | PeftModel) -> bool:
    """Whether output layer and input embedding are one weight."""
    source, output = (getattr(place, "weight", None) for place in _embeddings(model))
    return source is not None and source is output


def _embeddings(model: Any) -> tuple[Any, Any]:
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    return inner.get_input_embeddings(), inner.get_output_embeddings()


def _untie_adapted_embeddings(model: PeftModel) -> None:
    places = _embeddings(model)
    source, output = [getattr(place, "base_layer", place) for place in places]
    if (source, output) != places and getattr(output, "weight", None) is source.weight:
        output.weight = torch.nn.Parameter(output.weight.detach().clone(), requires_grad=False)


def trainable_parameters(model: PreTrainedModel | PeftModel) -> tuple[int, int]:
    """Number of trainable and of all parameters."""
    # A tensor in 4 bits holds two numbers an element; its own shape is in its quant_state.
    sizes = [(p.quant_state.shape.numel() if hasattr(p, "quant_state") else p.numel(), p) for p in model.parameters()]
    return sum(size for size, p in sizes if p.requires_grad), sum(size for size, _ in sizes)
