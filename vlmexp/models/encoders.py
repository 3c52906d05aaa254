"""What makes features of pixels within a model: its vision tower and, as a rule, its projector.

transformers' models have a `get_image_features` (and a `get_video_features`) for it, whose result goes into the places
of media tokens, in their order. Features that are known already can stand where the model takes pixels: they have more
dimensions than pixels ever have.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from transformers.modeling_outputs import BaseModelOutputWithPooling

from vlmexp.files import digest
from vlmexp.models.modules import ModulePatterns

# Inputs that hold pixels -> what encodes them, and the names in a configuration of the token in whose place they go.
METHODS = {"pixel_values": "get_image_features", "pixel_values_videos": "get_video_features"}
PLACES = {
    "pixel_values": ("image_token_id", "image_token_index"),
    "pixel_values_videos": ("video_token_id", "video_token_index"),
}
_MARK = (1,) * 5
_USUAL = {item.name for item in dataclasses.fields(BaseModelOutputWithPooling)}
_ASIDE = ("_name_or_path", "text_config", "transformers_version", "architectures", "use_cache", "dtype", "torch_dtype")
_WRAPPERS = ("base_model.model.", "base_layer.")  # of an adapter, in names


def marked(features: torch.Tensor) -> torch.Tensor:
    """Features as an input of the model, where it would take pixels."""
    return features.view(*_MARK, *features.shape)


def unmarked(pixels: Any) -> torch.Tensor | None:
    """The features that stand in the place of pixels; None if these are pixels."""
    if not isinstance(pixels, torch.Tensor) or pixels.ndim < len(_MARK) + 2:
        return None
    return pixels.reshape(pixels.shape[len(_MARK) :])


class OtherForm(Exception):
    """Features of a form that cannot be cut into those of single examples; the text says why."""


@dataclass(frozen=True)
class Form:
    """How a model's own output holds features [tokens, width] or [tiles, tokens of a tile, width].

    Attributes:
        bare: the output is a tensor of them and nothing else.
        listed: it has a tensor for each picture.
        layers: name -> how many more features of the same width it has for other layers (DeepStack), and whether each
            is listed. All stand behind one another in the width.
    """

    bare: bool = False
    listed: bool = False
    layers: Mapping[str, tuple[int, bool]] = field(default_factory=dict)

    def output(self, features: torch.Tensor) -> Any:
        """What the model's own function would give."""
        if self.bare:
            return features
        first, *others = features.chunk(1 + sum(count for count, _ in self.layers.values()), dim=-1)
        found = BaseModelOutputWithPooling(pooler_output=[first] if self.listed else first)  # type: ignore[arg-type]
        for name, (count, listed) in self.layers.items():
            mine, others = others[:count], others[count:]
            found[name] = [[layer] if listed else layer for layer in mine]
        return found


def formed(output: Any) -> tuple[torch.Tensor, Form]:
    """Features of a model's output, and how it holds them.

    Raises:
        OtherForm: they have none that is known here.
    """
    if isinstance(output, torch.Tensor):
        return output, Form(bare=True)
    first, listed = _in_one(output.pooler_output)
    parts, layers = [first], dict[str, tuple[int, bool]]()
    for name, value in output.items():
        if name not in _USUAL and isinstance(value, list | tuple):
            more = [_in_one(layer) for layer in value]
            parts += [layer for layer, _ in more]
            layers[name] = len(more), all(is_listed for _, is_listed in more)
    if len({part.shape for part in parts}) > 1 or first.ndim not in (2, 3):
        raise OtherForm(f"The tower's outputs have the shapes {[tuple(part.shape) for part in parts]}.")
    return torch.cat(parts, dim=-1), Form(listed=listed, layers=layers)


def _in_one(value: Any) -> tuple[torch.Tensor, bool]:
    """Features in one tensor, and whether they come in several."""
    if isinstance(value, torch.Tensor):
        return value, False
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in value]), True


class Encoder:
    """The functions of a model that make features of pixels.

    Raises:
        OtherForm: the model has none.
    """

    def __init__(self, model: Any, modules: ModulePatterns) -> None:
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        owners = [part for part in (inner.base_model, inner) if hasattr(type(part), METHODS["pixel_values"])]
        if not owners:
            raise OtherForm(f"{type(inner).__name__} has no function that encodes pictures alone.")
        self._model, self._modules, self._owner = inner, modules, owners[0]
        of_class = type(self._owner)
        self._functions: dict[str, Callable[..., Any]] = {
            name: getattr(of_class, method).__get__(self._owner)
            for name, method in METHODS.items()
            if hasattr(of_class, method)
        }

    def trained(self) -> str | None:
        """A trained weight of the parts that see pixels, by its name; None if there is none."""
        weights = self._model.named_parameters()
        return next((n for n, w in weights if w.requires_grad and self._modules.part_of(n) != "language"), None)

    def encode(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, tuple[torch.Tensor, Form]]:
        """Name of an input -> the features of the pixels that it holds.

        Raises:
            OtherForm: they have none that is known here.
        """
        found = {}
        for name in inputs.keys() & self._functions.keys():
            parameters = inspect.signature(self._functions[name]).parameters
            arguments: dict[str, Any] = {key: inputs[key] for key in parameters if key in inputs}
            if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
                arguments["return_dict"] = True
            found[name] = formed(self._functions[name](**arguments))
        return found

    def cut(self, features: torch.Tensor, name: str, input_ids: torch.Tensor) -> list[torch.Tensor]:
        """The features of each row of prompts, by how many tokens in a row stand for them.

        Raises:
            OtherForm: there are not as many features as such tokens.
        """
        config = self._model.config
        place = next((i for key in PLACES[name] if isinstance(i := getattr(config, key, None), int)), None)
        counts = (input_ids == place).sum(1).tolist() if place is not None else []
        a_tile = features.shape[1] if features.ndim == 3 else 1
        if sum(counts) != len(features) * a_tile or any(count % a_tile for count in counts):
            raise OtherForm(f"Features of the shape {tuple(features.shape)} stand for {counts} tokens.")
        return list(features.split([count // a_tile for count in counts]))

    def accept(self, forms: Mapping[str, Form]) -> None:
        """Have the model take features in the place of pixels."""
        for name, form in forms.items():
            setattr(self._owner, METHODS[name], _accepting(self._functions[name], form))

    def weights(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, nn.Parameter]:
        """Name -> parameter of all that the features of these inputs depend on; found by differentiation."""
        every = [weight for weight in self._model.parameters() if weight.is_floating_point()]
        trained = [weight.requires_grad for weight in every]
        try:
            for weight in every:
                weight.requires_grad_()
            nothing = torch.empty(0)  # is kept of what a backward pass would need: there is none
            with torch.enable_grad(), saved_tensors_hooks(lambda _: nothing, lambda _: nothing):
                reached = {id(leaf) for made, _ in self.encode(inputs).values() for leaf in _leaves(made)}
        finally:
            for weight, before in zip(every, trained, strict=True):
                weight.requires_grad_(before)
        return {name: weight for name, weight in self._model.named_parameters() if id(weight) in reached}

    def identity(self, weights: Mapping[str, nn.Parameter]) -> str:
        """A hash of all that decides what these weights make of pixels."""
        in_tower = {
            name: value
            for values in (self._model.named_parameters(), self._model.named_buffers())
            for name, value in values
            if self._modules.part_of(name) != "language" and not (value.is_floating_point() and value.requires_grad)
        }
        config = self._owner.config
        return digest(
            {
                "class": f"{type(self._owner).__module__}.{type(self._owner).__qualname__}",
                "config": repr(sorted((k, v) for k, v in config.to_dict().items() if k not in _ASIDE)),
                "attention": str([getattr(c, "_attn_implementation", None) for c in _configs(self._owner)]),
                "device": self._owner.device.type,
                "versions": [torch.__version__],
                "tensors": [[_plain(name), _hash(value)] for name, value in sorted({**in_tower, **weights}.items())],
            }
        )


def _accepting(function: Callable[..., Any], form: Form) -> Callable[..., Any]:
    @functools.wraps(function)
    def encoded(*args: Any, **kwargs: Any) -> Any:
        pixels = args[0] if args else next((kwargs[name] for name in METHODS if name in kwargs), None)
        features = unmarked(pixels)
        return function(*args, **kwargs) if features is None else form.output(features)

    return encoded


def _leaves(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The leaves that a tensor was computed from."""
    waiting, seen = [tensor.grad_fn], set[Any]()
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [parent for parent, _ in node.next_functions]


def _configs(owner: Any) -> Sequence[Any]:
    return [module.config for module in owner.modules() if hasattr(module, "config")]


def _plain(name: str) -> str:
    """A name as it is without an adapter."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _hash(tensor: torch.Tensor) -> str:
    """Of a tensor's dtype, shape and numbers."""
    value = tensor.detach().cpu().contiguous()
    found = hashlib.sha256(f"{value.dtype} {list(value.shape)}".encode())
    found.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
