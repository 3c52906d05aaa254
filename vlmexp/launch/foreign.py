"""What of a sweep's directory is run on the user's word only: what this user has not put there, and can run code."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from vlmexp import trust
from vlmexp.launch.snapshot import is_copy
from vlmexp.launch.sweep import Sweep

# Settings of a launcher that are numbers or names; `setup` and the like are lines of a shell's or further programs.
_SETTINGS = (
    "submitit_folder", "timeout_min", "cpus_per_task", "gpus_per_node", "tasks_per_node", "mem_gb", "nodes", "name",
    "stderr_to_stdout", "partition", "qos", "comment", "constraint", "exclude", "gres", "cpus_per_gpu", "gpus_per_task",
    "mem_per_gpu", "mem_per_cpu", "account", "signal_delay_s", "max_num_timeout", "array_parallelism", "wait",
    "cancel_on_interrupt",
)  # fmt: skip
_PLAIN = re.compile(r"[\w.,:;=@%+&|*/()\[\] -]*", re.ASCII)


def untrusted(sweep: Sweep, anew: Collection[str], code_of_here: bool, config_dir: Path) -> list[str]:
    """What stage=resume would run of somebody else's, in words.

    Args:
        anew: settings of the launcher that the user has given now.
        code_of_here: whether the jobs run the code that is here, and not the sweep's.
        config_dir: with the groups of options that are ours.
    """
    points = [text for point in sweep.points if not sweep.is_ours(point) for text in point.overrides]
    asked = trust.untrusted(points, config_dir)
    if sweep.search is not None and not sweep.has_our_search():
        asked += trust.untrusted(sweep.search, config_dir)
    plan = sweep.plan
    if not sweep.is_ours(plan):
        settings = plan.settings.items()
        asked += [f"hydra.launcher.{n}={v}" for n, v in settings if n not in anew and not _is_plain(n, v)]
        asked += plan.hydra_overrides
        if not code_of_here and not is_copy(sweep.directory / plan.code, config_dir):
            asked.append(f"{plan.code}, a copy of other code than there is here, which resume.code=current takes")
    return [*dict.fromkeys(asked), *trust.links_out(sweep.directory)]


def _is_plain(name: str, value: Any) -> bool:
    if name == "additional_parameters":
        return (
            isinstance(value, dict) and set(value) <= {"requeue"} and all(isinstance(v, bool) for v in value.values())
        )
    if name not in _SETTINGS:
        return not value
    return value is None or isinstance(value, int | float) or _PLAIN.fullmatch(str(value)) is not None
