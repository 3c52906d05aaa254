"""How an optimizer step is cut into batches: as few as fit into memory, without computing activations twice if it can.

A step keeps its examples and their order however it is cut, and its loss is a mean over all of its tokens: what is
learned is the same but for rounding and the random numbers of dropout.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from transformers import TrainingArguments

from vlmexp.runs import Run
from vlmexp.training.memory import is_out_of_memory
from vlmexp.training.preflight import TRAIN_SIZE, TooLarge

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Cut:
    """A process's part of an optimizer step: so many batches of so many examples, with or without checkpointing."""

    batch_size: int
    accumulation: int
    checkpointing: bool

    @property
    def examples(self) -> int:
        """Of a step, on this process."""
        return self.batch_size * self.accumulation

    def of(self, batch_size: int, checkpointing: bool) -> Cut:
        """The same step in batches of another size, which divides it."""
        return Cut(batch_size, self.examples // batch_size, checkpointing)


def given_cut(arguments: TrainingArguments) -> Cut:
    """What the options say."""
    size, steps = arguments.train_batch_size, arguments.gradient_accumulation_steps
    return Cut(size, steps, bool(arguments.activation_checkpointing))


def first_cut(given: Cut, whole_batches: bool, begun: Mapping[str, Any] | None) -> Cut:
    """What is tried first: the whole step at once, its activations kept.

    Args:
        whole_batches: the batches themselves must stay as they are.
        begun: the cut that the training began with, of which a checkpoint is there: it is kept, or what comes nearest
            to it on another number of processes.
    """
    if begun is None:
        return given.of(given.batch_size if whole_batches else given.examples, checkpointing=False)
    checkpointing = bool(begun["gradient_checkpointing"])
    if whole_batches:
        return given.of(given.batch_size, checkpointing)
    most = min(int(begun["batch_size"]), given.examples)
    return given.of(next(n for n in range(most, 0, -1) if given.examples % n == 0), checkpointing)


def smaller_cut(tried: Cut, found: TooLarge, given: Cut, whole_batches: bool) -> Cut | None:
    """What is tried after a cut that does not fit; None if there is nothing else.

    Smaller batches come first, down to a single example, then all once more with activations computed twice, unless
    the options or the model forbid that.
    """
    if found.option == TRAIN_SIZE and found.fits and not whole_batches:
        return tried.of(found.fits, tried.checkpointing)
    if tried.checkpointing or not (given.checkpointing and found.can_checkpoint):
        return None
    return tried.of(given.batch_size if whole_batches else given.examples, checkpointing=True)


class StepCut:
    """How a run's steps are cut: as the options say, or by what has been found to fit so far.

    Args:
        searches: whether what fits is looked for.
        has_begun: whether there is a checkpoint to go on from, which keeps the cut that it was made with.
    """

    def __init__(
        self, run: Run, arguments: TrainingArguments, whole_batches: bool, searches: bool, has_begun: bool
    ) -> None:
        self._run, self._arguments = run, arguments
        self._whole_batches, self._searches = whole_batches, searches
        self._given = self._cut = given_cut(arguments)
        if searches:
            self._cut = first_cut(self._given, whole_batches, run.record.get("fit") if has_begun else None)

    def apply(self) -> None:
        """Set the options of the training, and record them."""
        if not self._searches:
            return
        cut, arguments = self._cut, self._arguments
        arguments.per_device_train_batch_size = cut.batch_size // max(1, arguments.n_gpu)
        arguments.gradient_accumulation_steps = cut.accumulation
        arguments.activation_checkpointing = cut.checkpointing
        about = dataclasses.asdict(cut)
        about["gradient_checkpointing"] = about.pop("checkpointing")
        self._run.update(fit=about)
        log.info(
            "A step is %d x %d examples of a process, %s gradient checkpointing (train.fit=auto).",
            cut.accumulation, cut.batch_size, "with" if cut.checkpointing else "without",
        )  # fmt: skip

    def lower(self, found: TooLarge) -> None:
        """Take the next smaller cut; raises what was found if there is none."""
        smaller = smaller_cut(self._cut, found, self._given, self._whole_batches) if self._searches else None
        if smaller is None:
            raise found
        self._cut = smaller

    def lower_within(self, error: BaseException) -> None:
        """Take the next smaller cut after memory ran out in a step, for a training that goes on from its checkpoint.

        Raises:
            UserError: there is none, or other processes of the job are waiting for the step. What is no lack of memory
                is raised as it is.
        """
        if not is_out_of_memory(error):
            raise error
        cut = self._cut
        fits = next((size for size in range(cut.batch_size // 2, 0, -1) if cut.examples % size == 0), 0)
        text = (
            f"Memory ran out in a step with batches of {cut.batch_size} examples: continue with a smaller "
            f"train.per_device_train_batch_size, which with train.gradient_accumulation_steps makes {cut.examples}, or "
            "with train.gradient_checkpointing=true."
        )
        found = TooLarge(text, TRAIN_SIZE, fits, can_checkpoint=True)
        if self._arguments.world_size > 1:
            raise found
        self.lower(found)
        self._run.note_fallback(
            f"Memory ran out in a step with batches of {cut.batch_size} examples: the training goes on from its last "
            f"checkpoint with {self._cut.batch_size}{' and gradient checkpointing' * self._cut.checkpointing}."
        )
