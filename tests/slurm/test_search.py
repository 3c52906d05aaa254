"""A search whose points are SLURM jobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from tests.slurm.cluster import Cluster
from tests.slurm.conftest import LAUNCHER, Submit, records
from vlmexp.launch.sweep import Sweep

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("slurm")]

PROBE = """
def stage(config, run):
    if config.peft["r"] == 4:
        raise RuntimeError("out of luck")
    return {"metric": config.peft["r"] * 10}
"""


def test_a_search_of_which_one_point_fails(submit: Submit, slurm: Cluster, tmp_path: Path):
    (tmp_path / "probe.py").write_text(PROBE)
    client = submit(
        "-m", "hydra/sweeper=optuna", "hydra.sweeper.n_jobs=2", "stage=probe.stage", "peft.r=2,4,8", *LAUNCHER
    )
    said, errors = client.communicate()
    assert client.returncode == 0, errors
    assert "The space has only 3 points, and all have been tried." in said
    runs, jobs = records(tmp_path / "sweep"), Sweep(tmp_path / "sweep").jobs
    failed = [number for number, record in runs.items() if record["status"] == "failed"]
    assert len(runs) == 3
    assert len(failed) == 1
    assert slurm.end(jobs[failed[0]]) == "FAILED"
    assert f"point {failed[0]} failed  RuntimeError: out of luck" in said
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert (best.best_value, best.best_params["peft.r"]) == (80, 8)
