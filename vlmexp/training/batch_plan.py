"""How many examples an optimizer step sees, and how the processes of a job share them.

A training that goes on with another number of processes keeps its steps: each sees the same examples as before.
"""

from __future__ import annotations

from dataclasses import dataclass

from vlmexp.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """A step is `accumulation` batches of `batch_size` examples on each of the processes."""

    batch_size: int
    accumulation: int
    processes: int

    @property
    def batches(self) -> int:
        """Of a step, on all processes."""
        return self.accumulation * self.processes

    @property
    def examples(self) -> int:
        """Of a step, on all processes."""
        return self.batch_size * self.batches


def shared_by(plan: BatchPlan, processes: int, whole_batches: bool) -> BatchPlan:
    """The same steps on another number of processes: with as large batches, or else with smaller ones.

    Args:
        whole_batches: the batches themselves must stay as they are.

    Raises:
        UserError: so many processes cannot share a step equally.
    """
    if plan.batches % processes == 0:
        return BatchPlan(plan.batch_size, plan.batches // processes, processes)
    share, rest = divmod(plan.examples, processes)
    if rest or whole_batches:
        total, unit = (plan.batches, "batches") if whole_batches else (plan.examples, "examples")
        fitting = [str(number) for number in range(1, total + 1) if total % number == 0]
        raise UserError(
            f"A step of this training has {total} {unit} (it began with {counted(plan.processes)}), which {processes} "
            f"processes cannot share equally: continue it with {_any_of(fitting)}."
        )
    size = max(size for size in range(1, plan.batch_size + 1) if share % size == 0)
    return BatchPlan(size, share // size, processes)


def counted(processes: int) -> str:
    """The number with its noun."""
    return "1 process" if processes == 1 else f"{processes} processes"


def _any_of(numbers: list[str]) -> str:
    return f"{', '.join(numbers[:-1])} or {numbers[-1]}" if numbers[1:] else numbers[0]
