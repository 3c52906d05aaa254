"""PEFT adapters: attach, load, merge."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import peft
from peft import PeftModel
from transformers import PreTrainedModel

from vlmexp.errors import UserError


def peft_config(options: Mapping[str, Any]) -> peft.PeftConfig | None:
    """The PEFT configuration of the `peft` group; None for full fine-tuning.

    Raises:
        UserError: the configuration class refuses a value.
    """
    options = dict(options)
    class_name = options.pop("config_class", None)
    if class_name is None:
        return None
    try:
        config = getattr(peft, class_name)(**options)
    except (TypeError, ValueError) as error:
        raise UserError(f"peft: {class_name} refuses its options: {error}") from None
    assert isinstance(config, peft.PeftConfig)
    return config


def attach(model: PreTrainedModel, config: peft.PeftConfig | None) -> PreTrainedModel | PeftModel:
    """Freeze the model and add a trainable adapter; without a config, all weights stay trainable.

    Raises:
        UserError: PEFT cannot place the adapter, for example because `target_modules` match nothing.
    """
    if config is None:
        return model.requires_grad_(True)
    try:
        return peft.get_peft_model(model, config)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UserError(f"peft: the adapter cannot be attached to {type(model).__name__}: {error}") from None


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """The model with the adapter of a training run, for inference."""
    return PeftModel.from_pretrained(model, str(folder)).eval()


def merged(model: PreTrainedModel | PeftModel) -> PreTrainedModel:
    """The stand-alone model, the adapter's weights added to its own."""
    if not isinstance(model, PeftModel):
        return model
    result = model.merge_and_unload()
    assert isinstance(result, PreTrainedModel)
    return result


def trainable_parameters(model: PreTrainedModel | PeftModel) -> tuple[int, int]:
    """Number of trainable and of all parameters."""
    counts = [(p.numel() if p.requires_grad else 0, p.numel()) for p in model.parameters()]
    return sum(trainable for trainable, _ in counts), sum(total for _, total in counts)
