"""The loss as a mean over labelled tokens: how many there are, and label smoothing."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

_NO_LOSS = -100


def labelled_tokens(labels: torch.Tensor) -> torch.Tensor:
    """How many tokens of a batch carry a loss; the first one of a row is predicted from nothing and has none.

    Args:
        labels: [rows, tokens]
    """
    return labels[..., 1:].ne(_NO_LOSS).sum()


def smoothed_loss(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    """Mean over the labelled tokens of their cross-entropy with a target that gives every token of the vocabulary an
    equal part of `smoothing` (Szegedy et al., https://arxiv.org/abs/1512.00567, section 7).

    Args:
        logits: [rows, tokens, vocabulary]; those at a token predict the next one.
        labels: [rows, tokens]
    """
    predicted, following = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device)
    return cross_entropy(predicted, following, ignore_index=_NO_LOSS, label_smoothing=smoothing)
