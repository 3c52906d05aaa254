"""A stage that goes on when its job was stopped in the way that its name tells, and went back into its queue."""

from __future__ import annotations

import time
from typing import Any

from vlmexp.config import Config
from vlmexp.runs import Run
from vlmexp.slurm import this_job


def at_limit(record: dict[str, Any]) -> list[bool]:
    """Of each attempt that was told to stop, whether that was because of a time limit."""
    return [attempt.get("at_limit", False) for attempt in record["attempts"][:-1] if attempt["status"] == "preempted"]


def is_to_be_stopped(kind: str, record: dict[str, Any]) -> bool:
    """Whether the attempt that runs now waits until it is stopped in the way of its kind."""
    awaits = {"limit": True, "late": True, "signal": True, "preempted": False}
    return kind in ("stuck", "cancelled") or (kind in awaits and awaits[kind] not in at_limit(record))


def stage(config: Config, run: Run) -> dict[str, Any]:
    """Wait; `fails` does not, `stuck` keeps nothing of what it does, and `late` ends when its time limit is over."""
    kind = (config.tracking.name or "").partition("-")[0]
    if kind == "fails":
        raise RuntimeError("out of luck")
    if kind != "stuck":
        run.path("something.txt").touch()
    until = time.monotonic() + 600  # nothing outlives a failing test for long
    with run.interruption.deferred():
        while kind == "late" and is_to_be_stopped(kind, run.record) and not this_job().is_out_of_time:
            time.sleep(1)
            assert time.monotonic() < until
    while is_to_be_stopped(kind, run.record):
        time.sleep(0.1)
        assert time.monotonic() < until
    return {"metric": 1}
