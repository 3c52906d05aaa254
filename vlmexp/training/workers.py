"""The processes that read and collate batches while the model computes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader

_MOST_WORKERS = 8
_PREFETCHED = 4  # batches a worker prepares in advance


def worker_options(given: Mapping[str, Any], on_gpu: bool, cpus: int, processes: int) -> dict[str, Any]:
    """Fields of TrainingArguments for what `given` leaves open.

    On a GPU every process gets a share of the CPUs, 8 at most. A CPU computes faster without workers beside it.

    Args:
        cpus: that this job may use on this machine.
        processes: of the job, on this machine.
    """
    workers = given.get("dataloader_num_workers")
    if workers is None:
        workers = min(_MOST_WORKERS, cpus // processes) if on_gpu else 0
    if workers == 0:
        return {"dataloader_num_workers": 0}
    ours = {"dataloader_persistent_workers": True, "dataloader_prefetch_factor": _PREFETCHED}
    return {"dataloader_num_workers": workers} | {n: v for n, v in ours.items() if given.get(n) is None}


def usable_cpus() -> int:
    """CPUs that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def apart(loader: DataLoader[Any], seed: int) -> DataLoader[Any]:
    """The loader, with workers that have no part in the model's random numbers and in the tokenizer's threads.

    A loader draws a seed for its workers whenever it starts them, which a resumed run does at other times than an
    undisturbed one.
    """
    if loader.num_workers > 0:
        base: DataLoader[Any] = getattr(loader, "base_dataloader", loader)  # accelerate wraps it
        base.generator = torch.Generator().manual_seed(seed)
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else it warns in each worker
    return loader
