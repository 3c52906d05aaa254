"""A job of several processes: which rank this is, and the few things that ranks have to agree on.

Ranks come from torchrun, `accelerate launch` or SLURM's tasks, all through the same environment variables. One process
is a job of one rank, for which nothing here does anything or imports torch.
"""

from __future__ import annotations

import datetime
import os
from typing import Any

from vlmexp.errors import UserError

_TIMEOUT = datetime.timedelta(hours=6)  # others wait that long while rank 0 prepares, merges or saves
_control: Any = None  # a gloo group: agreeing costs no synchronisation with the GPU


def rank() -> int:
    """This process among all of the job; rank 0 is the one that writes."""
    return _number("RANK", 0)


def world_size() -> int:
    """How many processes the job has."""
    return _number("WORLD_SIZE", 1)


def refuse_sharding() -> None:
    """Raise a UserError if `accelerate launch` was told to shard weights.

    On CPUs accelerate leaves it out without a word; on GPUs nothing here would gather the shards to save and to merge.
    """
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
            raise UserError(
                f"accelerate launch: ACCELERATE_USE_{name}=true asks for sharded weights, and here each process holds "
                f"the whole model. Launch without --use_{name.lower()} and without a configuration file that sets it; "
                "for less memory choose train=low_memory or peft=qlora."
            )


def refuse_sweep() -> None:
    """Raise a UserError if this is one of several processes, each of which would be a client of the sweep."""
    if world_size() > 1:
        raise UserError(
            "A sweep does not run inside torchrun or accelerate launch: choose hydra/launcher=slurm or slurm_local "
            "with hydra.launcher.tasks_per_node, and each point gets its processes."
        )


def local_world_size() -> int:
    """How many of the job's processes run on this machine."""
    return _number("LOCAL_WORLD_SIZE", 1)


def _number(name: str, least: int) -> int:
    """What a launcher has set, or the least that there can be."""
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise UserError(
            f"The environment variable {name}={text} must be a whole number from {least} on: torchrun, accelerate and "
            "SLURM set it for several processes; unset it for one."
        )
    return int(text)


def start() -> None:
    """Join the job's process group, through accelerate, which chooses the backend that the Trainer expects."""
    global _control
    if world_size() == 1 or _control is not None:
        return
    import torch.distributed
    from accelerate import PartialState

    on_cpu = not torch.accelerator.is_available()
    if on_cpu:  # without being told so, accelerate and the Trainer take several processes on CPUs for one each
        os.environ["ACCELERATE_USE_CPU"] = "true"
    PartialState(cpu=on_cpu, timeout=_TIMEOUT)
    _control = torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT)


def stop() -> None:
    """Leave the process group."""
    global _control
    if _control is not None:
        import torch.distributed

        torch.distributed.destroy_process_group()
        _control = None


def barrier() -> None:
    """Wait until all ranks are here."""
    if _control is not None:
        import torch.distributed

        torch.distributed.monitored_barrier(_control, timeout=_TIMEOUT)


def any_rank(flag: bool) -> bool:
    """Whether the flag is set on any rank; all ranks must ask."""
    if _control is None:
        return flag
    import torch.distributed

    count = torch.tensor(int(flag))
    torch.distributed.all_reduce(count, group=_control)
    return bool(count)


def gathered(value: Any) -> list[Any]:
    """The value of every rank, in the order of ranks, on every rank."""
    if _control is None:
        return [value]
    import torch.distributed

    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value, group=_control)
    return values


def agreed_start() -> datetime.datetime:
    """When rank 0 asked, on all ranks, before there is a process group: through torchrun's own store.

    A job that torchrun starts again gets the time of its first start.
    """
    import torch.distributed

    store = torch.distributed.TCPStore(  # type: ignore[attr-defined]
        os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_TIMEOUT
    )
    name = "vlmexp/started"
    if rank() == 0 and not store.check([name]):
        store.set(name, datetime.datetime.now().isoformat())
    return datetime.datetime.fromisoformat(store.get(name).decode())
