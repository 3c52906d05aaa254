"""What runs inside a job: one point of a sweep, as the command line would run it in the point's directory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from vlmexp import programs
from vlmexp.files import read_json
from vlmexp.interruption import hold_back, ignore_signals
from vlmexp.launch.sweep import Sweep

GPUS = "VLMEXP_CUDA_VISIBLE_DEVICES"  # what the client of a local sweep may see, if that is not all there is


@dataclass(frozen=True)
class RunPoint:
    """Pickled by submitit; a requeued job gets the same object and continues in the same directory."""

    sweep: Path
    number: int
    hydra_overrides: tuple[str, ...]

    def __call__(self) -> None:
        """As a job of submitit's."""
        hold_back()
        _see_gpus()
        _join_ranks()
        self.run()
        ignore_signals()

    def run(self) -> None:
        """In this process, unless the point is done."""
        sweep = Sweep(self.sweep)
        point = next(point for point in sweep.points if point.point == self.number)
        directory = sweep.run_directory(point)
        record = directory / "run.json"
        if record.exists() and read_json(record)["status"] == "done":
            print(f"{directory} is done.")
            return
        quoted = QuotedString(str(directory), Quote.single).with_quotes()
        sys.argv = ["vlmexp", *point.overrides, *self.hydra_overrides, "hydra.mode=RUN", f"hydra.run.dir={quoted}"]
        from vlmexp.main import main

        main()

    def command(self) -> list[str]:
        """What runs it in a process of its own."""
        return [
            sys.executable, "-m", "vlmexp.launch.point", str(self.sweep), str(self.number), *self.hydra_overrides
        ]  # fmt: skip

    def checkpoint(self) -> Any:
        """What submitit requeues: the same again; the run directory knows how far it came."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _see_gpus() -> None:
    """Take back that submitit's local executor hides all GPUs of whoever names no number of them."""
    if GPUS in os.environ:
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ[GPUS]
    elif os.environ.get("SUBMITIT_EXECUTOR") == "local" and not os.environ["CUDA_VISIBLE_DEVICES"]:
        del os.environ["CUDA_VISIBLE_DEVICES"]


def _join_ranks() -> None:
    """Tell torch about SLURM's tasks."""
    from submitit.helpers import TorchDistributedEnvironment

    ranks = TorchDistributedEnvironment()
    if ranks.world_size == 1:
        return
    ranks.export(set_cuda_visible_devices=False, overwrite=True)
    os.environ["MASTER_ADDR"] = _address(ranks.master_addr)


def _address(node: str) -> str:
    """A node's name, or its address in SLURM's configuration where the name means nothing to the network."""
    try:
        socket.getaddrinfo(node, None)
        return node
    except OSError:
        show = subprocess.run(
            [programs.program("scontrol"), "show", "node", node, "-o"], capture_output=True, text=True, timeout=60
        )
        found = [word.removeprefix("NodeAddr=") for word in show.stdout.split() if word.startswith("NodeAddr=")]
        return found[0] if found else node


if __name__ == "__main__":
    RunPoint(Path(sys.argv[1]), int(sys.argv[2]), tuple(sys.argv[3:])).run()
