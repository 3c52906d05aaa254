"""The memory preflight: the heaviest batch of a training before its first step, not after hours."""

from __future__ import annotations

import contextlib
import gc
import logging
import math
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmexp import distributed
from vlmexp.collator.lengths import Fitted
from vlmexp.data.example import Example
from vlmexp.data.images import image_size
from vlmexp.errors import UserError
from vlmexp.training.heaviest import TokenCounts, heaviest, stored_batches, training_batches
from vlmexp.training.memory import (
    PeakMemory,
    available_bytes,
    is_out_of_memory,
    optimizer_state_bytes,
    resident_bytes,
)
from vlmexp.training.sampling import EpochSampler
from vlmexp.training.token_batches import TokenBatches
from vlmexp.training.trainer import VlmTrainer

TRAIN_SIZE = "train.per_device_train_batch_size"
TRAIN_TOKENS = "train.tokens_per_batch"
EVAL_SIZE = "train.per_device_eval_batch_size"
Keys = Sequence[object] | np.ndarray | None
log = logging.getLogger(__name__)


class TooLarge(UserError):
    """A batch that does not fit into memory.

    Attributes:
        option: what sets its size.
        fits: how many of its examples do; 0: not even one.
        can_checkpoint: whether the model can compute activations twice, to keep less of them.
    """

    def __init__(self, text: str, option: str, fits: int, can_checkpoint: bool) -> None:
        super().__init__(text)
        self.option, self.fits, self.can_checkpoint = option, fits, can_checkpoint


@dataclass(frozen=True)
class Load:
    """A batch to try: its examples, those of the longest row first, and how to run the first so many of them."""

    option: str  # what sets its size
    value: int  # of this option
    accumulated: int  # batches of an optimizer step
    effective: int  # examples that smaller batches must divide; 0: they need not
    batch: list[int]
    examples: Fitted
    counts: TokenCounts
    run: Callable[[dict[str, torch.Tensor]], None]

    @property
    def sizes(self) -> list[int]:
        """The batch size and smaller ones, each at most half the one before, that keep the effective batch whole."""
        sizes = [len(self.batch)]
        while sizes[-1] > 1:
            sizes.append(next(size for size in range(sizes[-1] // 2, 0, -1) if self.effective % size == 0))
        return sizes

    def others(self, size: int) -> int:
        """How many more batches of a size make an optimizer step."""
        return (self.effective // size if self.option == TRAIN_SIZE else self.accumulated) - 1

    def first(self, size: int) -> list[Example]:
        return [self.examples[index] for index in self.batch[:size]]

    def tokens(self, size: int) -> int:
        return self.counts.tokens(self.batch[:size])

    def described(self) -> dict[str, Any]:
        """The batch and its longest example, for run.json."""
        index = max(self.batch, key=self.examples.lengths.__getitem__)
        example = self.examples[index]
        images = [list(image_size(path)) for path in example.images]
        longest = {"id": example.id, "tokens": int(self.examples.lengths[index]), "images": images}
        return {"examples": len(self.batch), "set_by": self.option, "longest": longest}


class MemoryPreflight(TrainerCallback):
    """Runs the heaviest batches of a training forward and backward, as a step would, before the first step.

    The order of the examples is known in advance, so these are batches that will come: the one with the most tokens
    (padding included), the one with the most media tokens if it has clearly more of these, and of the evaluations the
    one with the most tokens if it has more. Room is held for the optimizer's state (an estimate) and, where gradients
    are accumulated, for the gradients of the batches before and the inputs of the others. Afterwards gradients, buffers
    and random states are as they were: the training is bit for bit the same with and without it.

    On a GPU what does not fit raises `TooLarge`, and smaller batches are tried to say what fits; it is raised on all
    processes if it is on one. On a CPU Linux promises
    more memory than there is and kills whoever uses it: so one example runs first, the batch only if twice of what it
    should need by that is free, and smaller ones before it otherwise. This catches what grows with the batch. It does
    not catch a model whose first example is too large, what other processes take later, or what the optimizer's step
    needs for a moment.

    A training that goes on from a checkpoint has fitted before and is not tried again. Add it before callbacks that
    measure time.

    Args:
        train, validation: the examples, with keys that are equal for examples that share a row (None: none do).
        record: takes `memory_preflight={device, peak_gib, optimizer_state_gib, seconds, batches}`.
        available: free memory in bytes, asked for on a CPU; None if that is not known.
    """

    def __init__(
        self,
        trainer: VlmTrainer,
        sampler: EpochSampler | TokenBatches,
        train: tuple[Fitted, Keys],
        validation: tuple[Fitted, Keys] | None,
        record: Callable[..., None],
        available: Callable[[], int | None] = available_bytes,
    ) -> None:
        self._trainer, self._sampler, self._record, self._available = trainer, sampler, record, available
        self._train, self._validation = train, validation
        self._peak = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.global_step > 0:
            return
        started = time.monotonic()
        with undisturbed(self._trainer.model_wrapped):
            batches = [
                {**load.described(), "inputs": self._try(load, args)}
                for load in self._loads(args, state.max_steps * args.gradient_accumulation_steps * args.world_size)
            ]
        optimizer_state = optimizer_state_bytes(str(args.optim), trained(self._trainer.model))
        self._record(
            memory_preflight={
                "device": args.device.type,
                "peak_gib": round(self._peak / 2**30, 3),
                "optimizer_state_gib": round(optimizer_state / 2**30, 3),
                "seconds": round(time.monotonic() - started, 3),
                "batches": batches,
            }
        )

    def _loads(self, args: TrainingArguments, count: int) -> list[Load]:
        examples, keys = self._train
        counts = TokenCounts(examples.lengths, examples.media_lengths, keys, self._trainer.packed)
        steps, run = args.gradient_accumulation_steps, self._trainer.rehearse
        batches = heaviest(counts, training_batches(self._sampler, count))
        if isinstance(self._sampler, TokenBatches):
            budget = self._sampler.budget
            loads = [Load(TRAIN_TOKENS, budget, steps, 0, batch, examples, counts, run) for batch in batches]
        else:
            effective = args.train_batch_size * steps
            loads = [Load(TRAIN_SIZE, len(b), steps, effective, b, examples, counts, run) for b in batches]
        if self._validation is not None and args.eval_strategy != "no":
            most = counts.tokens(loads[0].batch)
            examples, keys = self._validation
            counts = TokenCounts(examples.lengths, examples.media_lengths, keys, self._trainer.packed)
            run = self._trainer.rehearse_evaluation
            loads += [
                Load(EVAL_SIZE, len(batch), 1, len(batch), batch, examples, counts, run)
                for batch in heaviest(counts, stored_batches(len(examples), args.eval_batch_size))[:1]
                if counts.tokens(batch) > most
            ]
        return loads

    def _try(self, load: Load, args: TrainingArguments) -> dict[str, list[int]]:
        """The shapes of a batch's inputs, after it ran; `TooLarge` with what fits if it does not."""
        tried = self._grow(load, args) if args.device.type == "cpu" else self._shrink(load, args, load.sizes)
        fits = min(distributed.gathered(tried.size if tried else 0))
        if tried is None or fits < len(load.batch):
            model: Any = self._trainer.accelerator.unwrap_model(self._trainer.model)
            text = advice(load, fits, args, hasattr(model, "peft_config"))
            raise TooLarge(text, load.option, fits, bool(model.supports_gradient_checkpointing))
        self._peak = max(self._peak, tried.peak)
        return tried.inputs

    def _shrink(self, load: Load, args: TrainingArguments, sizes: Iterable[int]) -> Tried | None:
        """The first of the sizes that fits; they are given from large to small."""
        return next((tried for size in sizes if (tried := self._run(load, size, args))), None)

    def _grow(self, load: Load, args: TrainingArguments) -> Tried | None:
        """The largest size that fits, a single example first and then as far as the growth so far allows."""
        weights = trained(self._trainer.model)
        gradients = sum(weight.nbytes for weight in weights)
        before, free = resident_bytes(), self._available()
        sizes = load.sizes
        best = self._run(load, sizes[-1], args)
        while best is not None and best.size < sizes[0]:
            fixed = gradients + best.waiting
            grown = max(0, best.peak - before - fixed) / load.tokens(best.size)
            fixed += optimizer_state_bytes(str(args.optim), weights)
            following = sizes[sizes.index(best.size) - 1]
            if free is None or fixed + grown * load.tokens(sizes[0]) < free / 2:
                following = sizes[0]
            elif (needed := fixed + grown * load.tokens(following)) > free:
                log.info("%s=%d needs %.1f of %.1f GiB.", load.option, following, needed / 2**30, free / 2**30)
                break
            between = sizes[sizes.index(following) : sizes.index(best.size)]
            larger = self._shrink(load, args, between)
            if larger is None or larger.size < following:
                return larger or best
            best = larger
        return best

    def _run(self, load: Load, size: int, args: TrainingArguments) -> Tried | None:
        """Run the first examples of a load; None if there is not enough memory."""
        weights, tried = trained(self._trainer.model), None
        # The Trainer takes all batches of an optimizer step to the device at once; on a CPU the next one is there too.
        others = load.others(size)
        count = others + (args.device.type == "cpu")
        try:
            with PeakMemory() as peak, room_for(weights, str(args.optim), with_gradients=others > 0):
                batch = self._trainer.collated(load.first(size))
                waiting = [value.to(args.device, copy=True) for value in batch.values() for _ in range(count)]
                load.run(batch)
            inputs = {name: list(value.shape) for name, value in batch.items()}
            tried = Tried(size, inputs, peak.bytes, sum(value.nbytes for value in waiting))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            log.debug("%s=%d: %s", load.option, size, error)
        self._trainer.model_wrapped.zero_grad()
        if tried is None:
            gc.collect()  # what the error's traceback held
        torch.cuda.empty_cache()
        return tried


@dataclass(frozen=True)
class Tried:
    """A batch that fitted: examples, shapes of the inputs, and bytes: at the peak, and of batches that waited."""

    size: int
    inputs: dict[str, list[int]]
    peak: int
    waiting: int


def advice(load: Load, fits: int, args: TrainingArguments, has_adapter: bool) -> str:
    """What does not fit and what to turn down. `fits` examples do (0: not even one)."""
    about = load.described()
    longest = about["longest"]
    images = " and ".join(f"{width}x{height}" for width, height in longest["images"])
    padding = "" if load.counts.packed else ", padding included"
    text = (
        f"{load.option}={load.value} does not fit into memory: its heaviest batch has {load.tokens(len(load.batch))} "
        f"tokens{padding}; the longest example, {longest['id']}, has {longest['tokens']}"
        + (f" with images of {images} pixels. " if images else ". ")
    )
    if fits and load.option == TRAIN_SIZE:
        text += (
            f"{load.option}={fits} fits, and with train.gradient_accumulation_steps={load.effective // fits} keeps the "
            f"effective batch of {load.effective}."
        )
    elif fits and load.option == TRAIN_TOKENS:
        steps = math.ceil(load.accumulated * load.value / load.tokens(fits))
        text += (
            f"{load.option}={load.tokens(fits)} fits, and with train.gradient_accumulation_steps={steps} keeps about "
            "as many tokens a step."
        )
    else:
        text += f"{load.option}={fits} fits." if fits else "Not even one example fits."
    less = [] if args.activation_checkpointing else ["train.gradient_checkpointing=true"]
    less += ["a smaller peft.r"] if has_adapter else []
    less += ["a smaller collator.max_length", "smaller images (model.processor_kwargs)"]
    return f"{text} Less memory is also needed with {', '.join(less[:-1])} or {less[-1]}."


def trained(model: Any) -> list[nn.Parameter]:
    """The parameters that the optimizer moves."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


@contextlib.contextmanager
def room_for(weights: Sequence[nn.Parameter], optim: str, with_gradients: bool) -> Iterator[None]:
    """Hold memory for the optimizer's state and, if asked for, for gradients that are there before the batch."""
    held = [
        torch.empty(optimizer_state_bytes(optim, [weight]), dtype=torch.uint8, device=weight.device)
        for weight in weights
    ]
    if with_gradients:
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
    yield
    del held


@contextlib.contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Put back the random states of Python, numpy and torch, and the model's buffers, at the end of the block."""
    python, numpy = random.getstate(), np.random.get_state()
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = list(range(torch.cuda.device_count()))
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        with torch.no_grad():
            for buffer, saved in buffers:
                buffer.copy_(saved)
