"""How the examples of a batch are laid out for the model, and a test that this changes nothing that is learned."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainingArguments

from vlmexp.collator.batch import Collator
from vlmexp.collator.packing import numbered, packed_inputs
from vlmexp.collator.sharing import BRANCHES, branch_inputs
from vlmexp.data.example import Example
from vlmexp.models.packed_attention import masks_told
from vlmexp.training.loss import summed_loss
from vlmexp.training.memory import is_out_of_memory
from vlmexp.training.sampling import grouped

# Relative differences that float32 explains, and the largest that lower precision is allowed to.
LOSS, GRADIENTS = 1e-5, 1e-4
MOST_LOSS, MOST_GRADIENTS = 1e-2, 5e-2
ISOLATED = 1e-5  # of a token's loss, where other rows change: no precision explains that
_EXAMPLES = 4
_CANDIDATES = 256


@dataclasses.dataclass(frozen=True)
class Layout:
    """`shared`: the questions about an image stand behind one prefix. `packed`: there is no padding."""

    shared: bool
    packed: bool

    @property
    def described(self) -> str:
        rows = "one row for all questions about an image" if self.shared else "a row for each example"
        return f"{rows}, {'no' if self.packed else 'with'} padding"


PLAIN = Layout(shared=False, packed=False)


def laid_out(model: nn.Module, batch: dict[str, torch.Tensor], packed: bool) -> dict[str, torch.Tensor]:
    """A batch of the collator as the model takes it."""
    if packed:
        return packed_inputs(model, batch)
    if BRANCHES not in batch:
        return batch
    kind = batch["input_ids"].device.type
    autocast = torch.is_autocast_enabled(kind)
    return branch_inputs(model, batch, torch.get_autocast_dtype(kind) if autocast else next(model.parameters()).dtype)


def tried_on(lengths: np.ndarray, media: np.ndarray, keys: np.ndarray) -> list[int]:
    """A few short examples of different lengths for the test, with media if there are some, two and two of an image."""
    candidates = np.flatnonzero(media > 0)[:_CANDIDATES] if (media > 0).any() else np.arange(len(lengths))[:_CANDIDATES]
    members, starts = grouped(keys[candidates])
    rows = [candidates[members[a:b]] for a, b in pairwise(starts)]
    rows.sort(key=lambda row: (-min(len(row), 2), int(lengths[row[:2]].sum())))
    several = [row for row in rows if len(row) > 1]
    chosen = [int(index) for row in ((several[0], several[-1]) if len(several) > 1 else several) for index in row[:2]]
    rest = sorted((int(row[0]) for row in rows if int(row[0]) not in chosen), key=lambda index: int(lengths[index]))
    last = min(len(rest) - 1, max(_EXAMPLES - 1, len(rest) // 2))
    places = np.linspace(0, last, _EXAMPLES).round().astype(int).tolist() if rest else []
    return [*chosen, *dict.fromkeys(rest[place] for place in places)][:_EXAMPLES]


def layout_test(model: Any, collator: Collator, examples: Sequence[Example], args: TrainingArguments) -> LayoutTest:
    """A test in the precision of a training, and with its gradient checkpointing."""
    autocast = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None
    options: Any = args.activation_checkpointing_kwargs
    checkpointing = dict(options or {}) if args.activation_checkpointing else None
    return LayoutTest(model, collator, examples, autocast, checkpointing)


class LayoutTest:
    """Compares layouts of a few examples with plain rows: loss, gradients of the trained weights, and isolation.

    Isolation: what one row says, or one question behind a shared prefix, must not move the losses of the others by a
    bit. Dropout is off, gradients are taken away again.

    Args:
        model: with its adapter, without gradients.
        collator: its `share_images` is not looked at.
        autocast: the precision of the training's passes; None: that of the weights.
        checkpointing: the arguments of gradient checkpointing, where it is used; None: it is not.
    """

    def __init__(
        self,
        model: Any,
        collator: Collator,
        examples: Sequence[Example],
        autocast: torch.dtype | None = None,
        checkpointing: dict[str, Any] | None = None,
    ) -> None:
        self._model, self._examples, self._autocast = model, examples, autocast
        self._collators = {shared: dataclasses.replace(collator, share_images=shared) for shared in (False, True)}
        self._head = model.get_output_embeddings()
        self._checkpointing = checkpointing
        self._noise: tuple[float, float] | None = None

    def refuses(self, layout: Layout) -> str | None:
        """Why a layout is not exact here; None: it is."""
        try:
            with _steady(self._model, self._checkpointing):
                return self._sees_ahead() or self._difference(layout) or self._leak(layout)
        except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError) as error:
            if is_out_of_memory(error):
                return "there is not enough memory to try it"
            base = self._model.get_base_model() if hasattr(self._model, "get_base_model") else self._model
            return f"{type(base).__name__} does not take it ({' '.join(str(error).split())[:160]})"
        finally:
            self._model.zero_grad(set_to_none=True)

    def _sees_ahead(self) -> str | None:
        """Whether the model's own masks show or hide other tokens than causal rows do, which no precision explains."""
        batch, unlike = self._batch(self._examples, False), list[str]()
        present = batch["attention_mask"].bool()
        real = present[:, :, None] & present[:, None, :]  # [rows, queries, keys]
        place = torch.arange(present.shape[1])
        distance = place[:, None] - place

        def compare(query: torch.Tensor, mask: Any, window: int | None) -> None:
            is_of_tokens = (query.shape[0], query.shape[2]) == present.shape
            is_dense = isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.shape[-1] == present.shape[1]
            if not is_of_tokens or not is_dense:  # a part of the model that sees no text, or only padding is told
                return
            seen = (mask if mask.dtype == torch.bool else mask >= 0)[:, 0].cpu()
            causal = (distance >= 0) & ((distance < window) if window is not None else True)
            if bool(((seen != causal) & real).any()):
                unlike.append("its masks are not those of causal rows: some tokens see later ones, or not all before")

        with torch.no_grad(), self._precision(), masks_told(compare):
            summed_loss(self._model, self._head, self._inputs(batch, PLAIN))
        return unlike[0] if unlike else None

    def _difference(self, layout: Layout) -> str | None:
        loss, gradients = self._compared([self._batch(self._examples, layout.shared)], layout)
        if loss <= LOSS and gradients <= GRADIENTS:
            return None
        rounding = self._rounding
        if rounding > torch.finfo(torch.float32).eps:
            if self._noise is None:
                self._noise = self._compared([self._batch([example], False) for example in self._examples], PLAIN)
            noise, gradient_noise = (3 * value for value in self._noise)
            if loss <= min(max(noise, rounding / 8), MOST_LOSS) and gradients <= min(
                max(gradient_noise, rounding), MOST_GRADIENTS
            ):
                return None
        return f"its loss differs by {loss:.1e} and its gradients by {gradients:.1e} from those of separate rows"

    def _compared(self, batches: Sequence[dict[str, torch.Tensor]], layout: Layout) -> tuple[float, float]:
        """Relative differences of loss and gradients between plain rows and batches of the same examples."""
        self._model.zero_grad(set_to_none=True)
        expected = self._pass(self._batch(self._examples, False), PLAIN)
        size = self._gradients()
        found = sum(self._pass(batch, layout, sign=-1) for batch in batches)
        return abs(found - expected) / max(abs(expected), 1e-12), self._gradients() / max(size, 1e-12)

    def _pass(self, batch: dict[str, torch.Tensor], layout: Layout, sign: int = 1) -> float:
        """The summed loss; its gradients are added to those that are there, or taken from them."""
        with self._precision():
            loss, _ = summed_loss(self._model, self._head, self._inputs(batch, layout))
        (sign * loss).backward()
        return float(loss.detach())

    def _leak(self, layout: Layout) -> str | None:
        """Whether other words in the first answer move the losses of the other rows and questions."""
        batch = self._batch(self._examples, layout.shared)
        branch, labels = numbered(batch), batch["labels"]
        said = labels != -100
        said[:, 0] = False
        row, place = said.nonzero()[0].tolist()
        own = said.clone()
        own[torch.arange(len(own)) != row] = False
        own &= branch == branch[row, place]
        words = labels[said].unique()
        ids = batch["input_ids"].clone()
        ids[own] = words[(torch.searchsorted(words, ids[own]) + 1) % len(words)]
        before, after = (
            self._token_losses({**batch, "input_ids": given}, layout) for given in (batch["input_ids"], ids)
        )
        others = ~own[said].to(before.device)
        moved = ((after - before).abs() / before.abs().clamp(min=1))[others]
        if bool((moved > ISOLATED).any()):
            return f"rows see each other: what one says moves the loss of another by {float(moved.max()):.1e}"
        return None

    @torch.no_grad()
    def _token_losses(self, batch: dict[str, torch.Tensor], layout: Layout) -> torch.Tensor:
        with self._precision():
            losses, _ = summed_loss(self._model, self._head, self._inputs(batch, layout), reduction="none")
        assert isinstance(losses, torch.Tensor)
        return losses

    def _batch(self, examples: Sequence[Example], shared: bool) -> dict[str, torch.Tensor]:
        return self._collators[shared](examples)

    def _inputs(self, batch: dict[str, torch.Tensor], layout: Layout) -> dict[str, Any]:
        on_device = {name: value.to(self._model.device) for name, value in batch.items()}
        return {**laid_out(self._model, on_device, layout.packed), "use_cache": False}

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self._model.device.type, self._autocast)

    @property
    def _rounding(self) -> float:
        """The relative error of a number in the lowest precision that there is."""
        kinds = {weight.dtype for weight in self._model.parameters() if weight.is_floating_point()}
        return max(torch.finfo(kind).eps for kind in kinds | ({self._autocast} if self._autocast else set()))

    def _gradients(self) -> float:
        norms = [p.grad.float().norm() for p in self._model.parameters() if p.grad is not None]
        return float(torch.stack([norm.to(norms[0].device) for norm in norms]).norm()) if norms else 0.0


@contextlib.contextmanager
def _steady(model: Any, checkpointing: dict[str, Any] | None) -> Iterator[None]:
    """The model without dropout, and with gradient checkpointing where a training has it."""
    training = [(module, module.training) for module in model.modules()]
    model.eval()
    if checkpointing is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
        for module in model.modules():
            if getattr(module, "gradient_checkpointing", False):
                module.training = True  # of the layer alone: what is in it drops nothing
    try:
        yield
    finally:
        if checkpointing is not None:
            model.gradient_checkpointing_disable()
        for module, was in training:
            module.training = was
