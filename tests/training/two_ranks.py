"""Several trainings one after the other on the ranks of torchrun: python -m tests.training.two_ranks JOBS FOLDER."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import hydra

from tests.training.planted import planted
from vlmexp import distributed
from vlmexp.checks import checked
from vlmexp.errors import UserError
from vlmexp.main import CONFIG_DIR
from vlmexp.runs import Run
from vlmexp.training import stage


def main(jobs: Path, folder: Path) -> None:
    """Each job is (run directory, overrides, what is planted on which rank); what a rank says goes into its file."""
    distributed.start()
    said = []
    for name, overrides, plant in json.loads(jobs.read_text()):
        with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
            config = checked(hydra.compose("config", overrides))
        mine = plant is not None and plant["rank"] == distributed.rank()
        try:
            planting = planted(plant["step"], plant["where"]) if mine else contextlib.nullcontext()
            with planting, Run.open(folder / name, config, []) as run:
                stage.train_model(config, run)
            said.append(None)
        except UserError as error:
            said.append(str(error))
    (folder / f"said-{distributed.rank()}.json").write_text(json.dumps(said))
    distributed.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
