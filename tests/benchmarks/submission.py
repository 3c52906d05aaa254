"""Processor seconds to submit a sweep to a real SLURM, to ask how it stands, and to compare its runs.

    python -m tests.benchmarks.submission 25 50 100 200

The jobs are held in the queue; the runs that are compared are copies of one small real one.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.conftest import ROOT
from tests.slurm.cluster import running_cluster
from vlmexp.files import read_json, write_json
from vlmexp.launch.sweep import Sweep

RUN = ["stage=train", "train=smoke", "threads=1", "dataset.max_examples={train: 64, validation: 8, test: 8}"]


def seconds(*arguments: str, folder: Path, environment: dict[str, str]) -> float:
    """Processor time of a command and of what it starts: other work on the machine does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "vlmexp", *arguments], cwd=folder, env=environment, check=True, capture_output=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(counts: list[int]) -> None:
    """Print one line a size."""
    with running_cluster() as cluster, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | cluster.environment | {"PYTHONPATH": path}
        seconds(*RUN, "hydra.run.dir=real", folder=folder, environment=environment)
        for file in ("model", "deployment_model", "checkpoints"):
            shutil.rmtree(folder / "real" / file)
        print(f"{'points':>6} {'submit':>8} {'status':>8} {'compare':>8}   seconds, and a point of submitting")
        for count in counts:
            sweep = Sweep(folder / f"sweep{count}")
            submit = seconds(
                "-m", "stage=train", f"seed=range({count})", "hydra/launcher=slurm", "hydra.launcher.wait=false",
                "+hydra.launcher.additional_parameters.hold=true", f"hydra.sweep.dir={sweep.directory}",
                folder=folder, environment=environment,
            )  # fmt: skip
            assert len(sweep.jobs) == count
            cluster.clear()
            for point in sweep.points:
                shutil.copytree(folder / "real", sweep.run_directory(point), dirs_exist_ok=True)
                record = sweep.run_directory(point) / "run.json"
                write_json(record, read_json(record) | {"id": f"{count}-{point.point}"})
            status = seconds("stage=status", f"sweep={sweep.directory}", folder=folder, environment=environment)
            compare = seconds(
                "stage=compare", f"compare.runs=[{sweep.directory}]", folder=folder, environment=environment
            )
            print(f"{count:>6} {submit:8.2f} {status:8.2f} {compare:8.2f}   {submit / count:.3f}", flush=True)


if __name__ == "__main__":
    main([int(text) for text in sys.argv[1:]] or [25, 50, 100, 200])
