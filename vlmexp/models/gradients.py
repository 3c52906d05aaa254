"""Gradients where something is trained, and nowhere else.

With gradient checkpointing transformers has the outputs of all input embeddings demand a gradient, those of a vision
tower included: a frozen tower then keeps what its backward pass would need, and makes that pass, for nothing. Only
re-entrant checkpointing needs it, and only where something is trained.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel


def demand_no_idle_gradients(model: Any, reentrant: bool) -> None:
    """Have `enable_input_require_grads` of a model leave alone what has no use for it.

    Args:
        model: with or without an adapter.
        reentrant: whether checkpointing is re-entrant, so that a checkpointed layer learns nothing unless one of its
            inputs demands a gradient.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model

    def enable() -> None:
        inner._require_grads_hooks = []
        if not reentrant:
            return
        before = {id(module): set(module._forward_hooks) for module in inner.modules()}
        type(inner).enable_input_require_grads(inner)
        for tower in idle_towers(inner):
            for module in tower.modules():
                for number in set(module._forward_hooks) - before[id(module)]:
                    del module._forward_hooks[number]

    inner.enable_input_require_grads = enable


def idle_towers(model: PreTrainedModel) -> list[nn.Module]:
    """Models within the model that do not read its tokens, such as a vision tower, of which nothing is trained."""
    tokens = model.get_input_embeddings()
    inside = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    towers = [module for module in inside if all(part is not tokens for part in module.modules())]
    return [tower for tower in towers if not any(weight.requires_grad for weight in tower.parameters())]
