"""A number that is not finite, planted once: in the loss, the gradient or the weights of a step."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from unittest.mock import patch

from vlmexp.training.trainer import VlmTrainer

training_step, learning_rate = VlmTrainer.training_step, VlmTrainer._get_learning_rate


@contextlib.contextmanager
def planted(step: int, where: str = "loss", number: float = math.nan) -> Iterator[None]:
    """Within the block the first batch of the step has this number in it."""
    left = [number]

    def stepped(self, model, inputs, *args, **kwargs):
        loss = training_step(self, model, inputs, *args, **kwargs)
        if left and where != "weights" and self.state.global_step == step - 1:
            if where == "loss":
                self._watch._losses[-1].mul_(left.pop())
            else:
                next(p for p in model.parameters() if p.grad is not None).grad.view(-1)[0] = left.pop()
        return loss

    def rate(self):  # called behind the optimizer's step
        if left and where == "weights" and self.state.global_step == step - 1:
            next(p for p in self.model.parameters() if p.requires_grad).data.view(-1)[0] = left.pop()
        return learning_rate(self)

    with patch.object(VlmTrainer, "training_step", stepped), patch.object(VlmTrainer, "_get_learning_rate", rate):
        yield
    assert not left, "nothing was planted"
