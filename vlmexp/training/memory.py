"""How much memory there is, how much is used, and how much an optimizer will want."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import torch

_SAMPLE_S = 0.002
# Beginnings of names of train.optim, the first that fits counts -> states a weight, bytes of each (0: as the weight).
_STATES = (
    ("paged", 0, 0),  # lives in the CPU's memory
    ("adafactor", 0, 0),  # a row and a column of each matrix
    ("lomo", 0, 0),
    ("sgd", 1, 0),
    ("adagrad", 1, 0),
    ("rmsprop_bnb_8bit", 1, 1),
    ("rmsprop", 1, 0),
    ("lion_8bit", 1, 1),
    ("lion", 1, 0),
    ("ademamix_8bit", 3, 1),
    ("ademamix", 3, 0),
    ("adamw_torch_4bit", 1, 1),
    ("adamw_torch_8bit", 2, 1),
    ("adamw_bnb_8bit", 2, 1),
    ("adamw_8bit", 2, 1),
)


def optimizer_state_bytes(optim: str, parameters: Iterable[torch.Tensor]) -> int:
    """Estimate of what the optimizer allocates at its first step.

    Two values a weight in the weight's own precision (Adam) unless the name of the optimizer says otherwise.
    """
    states, width = next(((count, size) for start, count, size in _STATES if optim.startswith(start)), (2, 0))
    return sum(parameter.numel() * states * (width or parameter.element_size()) for parameter in parameters)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error of torch or Python says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    signs = ("not enough memory", "out of memory", "can't allocate memory", "ALLOC_FAILED", "std::bad_alloc")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


class PeakMemory:
    """Measures the most memory in use within a block, in bytes.

    On GPUs torch's own count, of the fullest one. On a CPU the resident memory of the process, looked at every two
    milliseconds; where the system does not tell (it does on Linux) `bytes` stays 0.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            for device in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(device)
        else:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if torch.cuda.is_available():
            self.bytes = max(torch.cuda.max_memory_allocated(device) for device in range(torch.cuda.device_count()))
        else:
            self._stop.set()
            self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident_bytes())
            if self._stop.wait(_SAMPLE_S):
                return


def resident_bytes() -> int:
    """Resident memory of this process; 0 where /proc does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def available_bytes() -> int | None:
    """Memory that this process can still take: of the machine, and of its control group, which a cluster's job has.

    None where /proc does not tell.
    """
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        machine = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None
    return min([machine, *group_bytes(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))])


def group_bytes(membership: Path, root: Path) -> list[int]:
    """What is left below the limit of the process's control group (version 2) and of each group above it."""
    try:
        own = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    left = []
    folder = root / own.lstrip("/")
    for group in (folder, *folder.parents):
        try:
            limit = int((group / "memory.max").read_text())
            used = int((group / "memory.current").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):  # no limit, or no group
            continue
        left.append(limit - used + int(stat.get("inactive_file", 0)))  # a file's cache gives way
    return left
