"""A job of several processes: which rank this is, and the few things that ranks have to agree on.

Ranks come from torchrun, `accelerate launch` or SLURM's tasks, all through the same environment variables. One process
is a job of one rank, for which nothing here does anything or imports torch.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import re
from typing import Any

from vlmexp.errors import UserError

_TIMEOUT = datetime.timedelta(hours=6)  # others wait that long while rank 0 prepares, merges or saves
_BROKEN = re.compile(r"gloo/transport|monitoredBarrier|ncclRemoteError|Connection (closed|reset|refused)|Broken pipe")
_BRIEF = datetime.timedelta(seconds=5)  # for what is said in leaving
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


def greatest(number: int) -> int:
    """The greatest number of all ranks; all ranks must ask."""
    if _control is None:
        return number
    import torch.distributed

    largest = torch.tensor(number)
    torch.distributed.all_reduce(largest, torch.distributed.ReduceOp.MAX, group=_control)
    return int(largest)


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
    store, name = _store(_TIMEOUT), "vlmexp/started"
    if rank() == 0 and not store.check([name]):
        store.set(name, datetime.datetime.now().isoformat())
    return datetime.datetime.fromisoformat(store.get(name).decode())


def announce_stop(number: int) -> None:
    """Tell the other ranks by which signal this one was told to stop: what they wait for breaks off when it leaves."""
    if _control is not None:
        with contextlib.suppress(RuntimeError):  # the launcher, which holds the store, may have left too
            _store(_BRIEF).set(_stop_name(), str(number))


def announced_stop() -> int | None:
    """The signal by which another rank was told to stop, if one has said so."""
    if _control is not None:
        with contextlib.suppress(RuntimeError):
            store = _store(_BRIEF)
            if store.check([_stop_name()]):
                return int(store.get(_stop_name()))
    return None


class LostRank(UserError):
    """Another process of the job is not there any more."""

    exit_code = 1


def without_rank(error: RuntimeError) -> RuntimeError | LostRank:
    """What to say of an error of a link to another rank; any other error as it is."""
    if not _BROKEN.search(str(error)):
        return error
    return LostRank(
        "Another process of this job has ended, and this one cannot go on without it. The launcher's output and the "
        "train-rank*.log of the run say why; started again with run=, the job goes on from its last checkpoint."
    )


def _stop_name() -> str:
    return f"vlmexp/stopped/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"  # torchrun may start the job again


def _store(timeout: datetime.timedelta) -> Any:
    """The store that the launcher, or else rank 0, holds for the job."""
    import torch.distributed

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(address, port, is_master=False, timeout=timeout)  # type: ignore[attr-defined]
