"""The processes that read and collate batches while the model computes."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader
from transformers.trainer_utils import seed_worker

from vlmexp.errors import UserError

_MOST_WORKERS = 8
_LAST_S = 300
_OF_WORKERS = ("dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_multiprocessing_context")
_PREFETCHED = 4  # batches a worker prepares in advance


def worker_options(given: Mapping[str, Any], on_gpu: bool, cpus: int, processes: int) -> dict[str, Any]:
    """Fields of TrainingArguments for what `given` leaves open.

    On a GPU every process gets a share of the CPUs, 8 at most. A CPU computes faster without workers beside it.

    Args:
        cpus: that this job may use on this machine.
        processes: of the job, on this machine.

    Raises:
        UserError: there are no workers, and something is asked of them.
    """
    workers = given.get("dataloader_num_workers")
    if workers is None:
        workers = min(_MOST_WORKERS, cpus // processes) if on_gpu else 0
    if workers == 0:
        for name in _OF_WORKERS:
            if given.get(name):
                raise UserError(
                    f"train.{name}={given[name]} is for worker processes, of which there are none (as always without a "
                    "GPU): set train.dataloader_num_workers above 0, or leave it out."
                )
        return {"dataloader_num_workers": 0}
    ours = {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": _PREFETCHED}
    return {"dataloader_num_workers": workers} | {n: v for n, v in ours.items() if given.get(n) is None}


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def begin_worker(number: int, workers: int, rank: int) -> None:
    """Seed a worker, and have it outlast the SIGTERM with which a launcher ends all processes of a job.

    The training ends behind its step and a checkpoint, for which it still takes batches. Afterwards it ends its workers
    by other means; one that hangs then is gone when its time is over.
    """
    seed_worker(number, num_workers=workers, rank=rank)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_LAST_S))


class WorkedLoaders:
    """Loaders that keep out of the model's random numbers, and whose workers end when they are told to.

    A loader draws a seed for its workers whenever it starts them, which a resumed run does at other times than an
    undisturbed one, and without workers whenever it is gone through: a run may go on with another number of them. And
    workers that are left to the garbage collector hold a run up for five seconds each: their queues are closed before
    anybody tells them to end.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._loaders: list[Any] = []

    def add(self, loader: DataLoader[Any]) -> DataLoader[Any]:
        """The loader itself, with a random number generator of its own."""
        base: DataLoader[Any] = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
        base.generator = torch.Generator().manual_seed(self._seed)
        if loader.num_workers > 0:
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns in each worker
            self._loaders.append(base)
        return loader

    def end_workers(self) -> None:
        """Stop the persistent workers of all loaders; their next use would start others."""
        for loader in self._loaders:
            if loader._iterator is not None:  # torch has no public way
                loader._iterator._shutdown_workers()
                loader._iterator = None
