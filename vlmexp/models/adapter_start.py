"""Adapters that begin by taking a part out of the base weights: PiSSA and OLoRA.

They train W - s B0 A0 + s B A, where W is the base model's weight, B0 A0 the adapter at its start and s its scaling.
B0 and A0 come out of a decomposition of W that may draw random numbers and rounds otherwise on another machine. So they
are kept in a file of their own, which a resumed training begins with; and what is saved at the end is an ordinary LoRA
of twice the rank on the base model as it is: W + s [B | -B0] [A ; A0].
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load, load_file, save_file

from vlmexp.errors import UserError
from vlmexp.files import read_json, replace, settle, write_json
from vlmexp.models.checkpoint import damage_of

Start = dict[str, torch.Tensor]  # name in the adapter's file -> the matrix at the start
_MATRIX = re.compile(r"\.lora_(embedding_)?[AB](\.weight)?$")


def start_of(model: PeftModel) -> Start:
    """The matrices of an adapter as they are.

    Raises:
        UserError: the adapter's start has changed a weight that has a second place in the model, or is kept in few
            bits.
    """
    if getattr(model, "is_quantized", False):
        raise UserError(
            "peft.init_lora_weights: PiSSA and OLoRA change the base weights, which peft.quantization keeps in few "
            "bits: choose init_lora_weights=true, or a base that is not quantised."
        )
    places = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    for name, layer in _lora_layers(model).items():
        base = layer.get_base_layer()
        if places[id(base.weight)] > 1 and not isinstance(base, torch.nn.Embedding):  # these start as in plain LoRA
            raise UserError(
                f"peft.target_modules: {name.removeprefix('base_model.model.')} shares its weight with another module "
                "of the model, and PiSSA and OLoRA change it: leave it out, or choose peft.init_lora_weights=true."
            )
    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: tensor.detach().clone() for name, tensor in state.items() if _MATRIX.search(name)}


def begin_with(model: PeftModel, start: Start) -> None:
    """Take this start out of the base weights, in the place of the one that was just taken out of them."""
    if all(torch.equal(tensor, start[name].to(tensor.device)) for name, tensor in start_of(model).items()):
        return
    _add_to_base(model, 1)
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, save_embedding_layers=False) | start)
    _add_to_base(model, -1)


@torch.no_grad()
def _add_to_base(model: PeftModel, sign: int) -> None:
    """Add what the adapter adds now to the base weights, or subtract it."""
    for layer in _lora_layers(model).values():
        weight = layer.get_base_layer().weight
        weight += (sign * layer.get_delta_weight(model.active_adapter)).to(weight.dtype)


def _lora_layers(model: PeftModel) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def save_start(start: Start, path: Path) -> None:
    """Write the matrices of a start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".partial")
    save_file({name: tensor.contiguous().cpu() for name, tensor in start.items()}, temporary)
    settle(temporary)
    replace(temporary, path)


def load_start(path: Path) -> Start:
    """The matrices that `save_start` wrote; a UserError if they are no longer whole."""
    if wrong := damage_of(path):
        raise UserError(f"{path} {wrong}, and the training began with it: restore it from a copy, or start a new run.")
    return load_file(path)


def as_plain_lora(folder: Path, start: Start) -> None:
    """Turn the adapter in a folder into an ordinary LoRA on the base model as it is, of twice the rank."""
    path, about = folder / "adapter_model.safetensors", read_json(folder / "adapter_config.json")
    weights = load(path.read_bytes())
    for name, first in start.items():
        trained, first = weights[name], first.to(weights[name])
        is_b = re.search(r"B(\.weight)?$", name) is not None
        weights[name] = torch.cat([trained, -first], dim=1) if is_b else torch.cat([trained, first], dim=0)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path, {"format": "pt"})
    # The scaling, alpha / rank or alpha / sqrt(rank), stays what it is.
    factor = 2**0.5 if about["use_rslora"] else 2
    about |= {"init_lora_weights": True, "r": 2 * about["r"], "lora_alpha": factor * about["lora_alpha"]}
    about["rank_pattern"] = {name: 2 * rank for name, rank in (about["rank_pattern"] or {}).items()}
    about["alpha_pattern"] = {name: factor * alpha for name, alpha in (about["alpha_pattern"] or {}).items()}
    write_json(folder / "adapter_config.json", about)
