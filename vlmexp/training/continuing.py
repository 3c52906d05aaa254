"""What shapes a training beside its configuration, kept or compared when an attempt goes on with it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmexp import distributed, provenance
from vlmexp.errors import UserError
from vlmexp.models.checkpoint import fingerprint
from vlmexp.models.load import ModelSource
from vlmexp.runs import Run
from vlmexp.training.batch_plan import BatchPlan, counted, shared_by
from vlmexp.training.checkpoints import written_by

PACKAGES = ("torch", "transformers", "peft", "accelerate", "tokenizers", "numpy")


def same_base(run: Run, source: ModelSource) -> ModelSource:
    """The base model that the run began with: of a Hub id the same commit, whatever its branch holds by now."""
    commit = run.record.get("model", {}).get("commit")
    return dataclasses.replace(source, revision=commit) if commit else source


def require_same_base(run: Run, source: ModelSource) -> str:
    """The fingerprint of the base model.

    Raises:
        UserError: it is not the one that the run began with.
    """
    found = distributed.gathered(fingerprint(source.location, source.revision) if run.is_main else None)[0]
    begun = run.record.get("model", {}).get("fingerprint", found)
    if begun != found:
        raise UserError(
            f"{run.directory} began on other weights or files than there are now in model.id={source.id}: an adapter "
            "trained on both would fit neither. Restore them, or start a new run."
        )
    return str(found)


def keep_steps(run: Run, arguments: TrainingArguments, checkpoint: Path | None, whole_batches: bool) -> int:
    """Have each step see as many examples as in the run's first attempt, however many processes there are now.

    Args:
        arguments: batch size and accumulation are changed here where that takes it.
        whole_batches: the batches themselves must stay as they are.

    Returns:
        With how many processes the run began.

    Raises:
        UserError: so many processes cannot share a step equally.
    """
    own = BatchPlan(arguments.train_batch_size, arguments.gradient_accumulation_steps, arguments.world_size)
    wrote = written_by(checkpoint) if checkpoint else None
    begun = BatchPlan(**run.record["steps"]) if "steps" in run.record else _with(own, wrote or own.processes)
    run.update(steps=dataclasses.asdict(begun))
    plan = shared_by(begun, own.processes, whole_batches)
    if plan != own:
        if arguments.auto_find_batch_size or not arguments.average_tokens_across_devices:
            searched = "auto_find_batch_size=true"
            option = searched if arguments.auto_find_batch_size else "average_tokens_across_devices=false"
            raise UserError(
                f"This training began with {counted(begun.processes)}, and with train.{option} its steps would be "
                f"others with {own.processes}: continue it as it began."
            )
        arguments.per_device_train_batch_size = plan.batch_size // max(1, arguments.n_gpu)
        arguments.gradient_accumulation_steps = plan.accumulation
        run.note_fallback(
            f"The run began with {counted(begun.processes)} and goes on with {own.processes}: with "
            f"train.per_device_train_batch_size={plan.batch_size} and "
            f"train.gradient_accumulation_steps={plan.accumulation} a step has its {plan.examples} examples as before."
        )
    if checkpoint and wrote not in (None, own.processes):
        run.note_fallback(
            f"{checkpoint.name} was written by {counted(wrote or 0)}, and {own.processes} go on: random numbers, such "
            "as those of dropout, are drawn anew."
        )
    return begun.processes


def _with(plan: BatchPlan, processes: int) -> BatchPlan:
    return dataclasses.replace(plan, processes=processes)


class EpochsByExamples(TrainerCallback):
    """Counts epochs by the examples that the steps have seen; the Trainer counts rounds of batches on all processes.

    Args:
        examples_after: how many examples so many steps of the training see.
        per_epoch: how many an epoch has.
    """

    def __init__(self, examples_after: Callable[[int], int], per_epoch: int) -> None:
        self._examples_after, self._per_epoch = examples_after, per_epoch

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        state.epoch = self._examples_after(state.global_step) / self._per_epoch


def note_other_machine(run: Run, arguments: TrainingArguments) -> None:
    """Say so where an attempt computes on another kind of device, in another precision or with other packages."""
    versions = provenance.package_versions()
    now = {
        "device": arguments.device.type,
        "precision": "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "float32",
        **{name: versions[name] for name in PACKAGES if name in versions},
    }
    begun = run.record.get("computed_with", now)
    changed = [f"{name} {now[name]} instead of {begun.get(name)}" for name in now if now[name] != begun.get(name)]
    if changed:
        run.note_fallback(
            f"The training goes on with {', '.join(changed)}: its steps may round otherwise than those of an "
            "undisturbed training."
        )
    run.update(computed_with=begun)
