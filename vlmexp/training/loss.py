"""The loss as a mean over labelled tokens, for which alone the head of a model works."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.functional import cross_entropy

_NO_LOSS = -100


def labelled_tokens(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens of a batch carry a loss; the first one of a row is predicted from nothing and has none.

    Args:
        labels: [rows, tokens]
    """
    return labels[..., 1:].ne(_NO_LOSS).sum()


def summed_loss(
    model: nn.Module, head: nn.Module | None, inputs: Mapping[str, Any], smoothing: float = 0.0, reduction: str = "sum"
) -> Any:
    """The sum over a batch's labelled tokens of their cross-entropy, and the model's outputs.

    The head makes logits where a labelled token is predicted and nowhere else; over a large vocabulary most of a step's
    memory would be logits that nothing is learned from. The outputs' logits are [1, labelled tokens, vocabulary] then.

    Args:
        head: the module of the model that makes logits of hidden states; None where it cannot be told.
        inputs: with `labels` [rows, tokens].
        smoothing: the part of a target that is given to all tokens of the vocabulary in equal parts (Szegedy et al.,
            https://arxiv.org/abs/1512.00567, section 7).
        reduction: `none` gives the loss of each labelled token, row after row.
    """
    labels = inputs["labels"]
    predicts = labels.new_zeros(labels.shape, dtype=torch.bool)  # [rows, tokens] whether the next token is labelled
    predicts[:, :-1] = labels[:, 1:].ne(_NO_LOSS)
    with _only(head, predicts):
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
    logits = outputs.logits
    chosen = logits[predicts.to(logits.device)] if logits.shape[:2] == labels.shape else logits[0]
    following = labels[:, 1:][predicts[:, :-1]].to(logits.device)
    loss = cross_entropy(chosen.float(), following, reduction=reduction, label_smoothing=smoothing)
    return loss, outputs


@contextlib.contextmanager
def _only(head: nn.Module | None, predicts: torch.Tensor) -> Iterator[None]:
    """Within it a head sees of hidden states [rows, tokens, size] those where `predicts` is set, as one row."""

    def select(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        hidden, *others = arguments
        if hidden.shape[:2] != predicts.shape:  # a part of the batch, or not a state for each token
            return None
        return hidden[predicts.to(hidden.device)][None], *others

    hook = head.register_forward_pre_hook(select) if head is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()
