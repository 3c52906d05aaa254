"""Hydra's launchers `slurm` and `slurm_local`: Hydra 1.3 takes launchers from packages below `hydra_plugins` only.

Annotations are no strings here: Hydra executes the module without an entry in sys.modules, where dataclasses would look
their names up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf, open_dict


@dataclass
class SlurmSettings(SlurmQueueConf):
    """Settings of `hydra/launcher=slurm`; conf/hydra/launcher/slurm.yaml gives the values."""

    _target_: str = "hydra_plugins.vlmexp_launcher.SlurmLauncher"
    wait: bool = True  # false: return as soon as everything is submitted
    cancel_on_interrupt: bool = False  # whether Ctrl-C ends the jobs too


@dataclass
class LocalSettings(LocalQueueConf):
    """Settings of `hydra/launcher=slurm_local`; conf/hydra/launcher/slurm_local.yaml gives the values."""

    _target_: str = "hydra_plugins.vlmexp_launcher.LocalLauncher"
    wait: bool = True
    cancel_on_interrupt: bool = False
    max_num_timeout: int = 0
    array_parallelism: int = 1  # points at once


ConfigStore.instance().store(group="hydra/launcher", name="slurm_settings", node=SlurmSettings, provider="vlmexp")
ConfigStore.instance().store(group="hydra/launcher", name="slurm_local_settings", node=LocalSettings, provider="vlmexp")


class _Launcher(BaseSubmititLauncher):  # type: ignore[misc]
    """Checks every point, records the sweep, copies the code, submits, and tells the truth about the end.

    A job runs the command line of its point, so it does what a single run does.
    """

    kind: ClassVar[str]

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Imported late: Hydra imports this module whenever it looks for plugins.
        from vlmexp.launch.client import SweepFailed, current, refuse_failures, run_points
        from vlmexp.launch.snapshot import take_snapshot
        from vlmexp.launch.sweep import Plan, Sweep
        from vlmexp.main import CONFIG_DIR
        from vlmexp.storage import writing

        setup_globals()
        sweep = Sweep(Path(str(self.config.hydra.sweep.dir)))
        self._check(job_overrides)
        given, hydra_overrides = self._search_path()
        folders = [Path(text.removeprefix("file://")).absolute() for text in given if text.startswith("file://")]
        with writing(sweep.directory, "or choose another place with hydra.sweep.dir"):
            snapshot = take_snapshot(sweep.directory / "code", CONFIG_DIR, folders)
        copies = (f"file://{snapshot}/searchpath-{number}" for number in range(len(folders)))
        if given:
            searched = [next(copies) if text.startswith("file://") else text for text in given]
            hydra_overrides.append(f"hydra.searchpath=[{','.join(searched)}]")
        plan = Plan(self.kind, self.params, str(snapshot.relative_to(sweep.directory)), hydra_overrides)
        with writing(sweep.directory, "or choose another place with hydra.sweep.dir"):
            sweep.plan = plan
            points = sweep.add(job_overrides)  # last: what has points can be resumed
        standings = current(sweep, points)
        queued = [s.point for s in standings if s.status in ("pending", "running")]
        todo = [s.point for s in standings if s.status != "done" and s.point not in queued]
        print(f"{sweep.directory}: {len(todo)} of {len(points)} points to run", flush=True)
        failure = None
        if todo or queued:
            ended = run_points(sweep, todo, plan, queued)
            if not self.params["wait"]:
                return []
            try:
                refuse_failures(sweep, ended)
            except SweepFailed as error:
                failure = error
        return self._returns(current(sweep, points), failure)

    def _check(self, job_overrides: Sequence[Sequence[str]]) -> None:
        """Refuse the whole sweep if a single point could not start."""
        from vlmexp.errors import UserError
        from vlmexp.main import check

        for number, overrides in enumerate(job_overrides):
            composed = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
            with open_dict(composed):
                del composed["hydra"]
            try:
                check(composed)
            except UserError as error:
                raise UserError(f"point {number} ({' '.join(overrides)}): {error}") from None

    def _search_path(self) -> tuple[list[str], list[str]]:
        """Where the user's own config is, and the rest of what the command line says to Hydra about a job."""
        given: Any = OmegaConf.to_object(self.config.hydra.searchpath) or []
        kept = [text for text in self.config.hydra.overrides.hydra if text.startswith(("hydra.job.", "+hydra.job."))]
        return list(given), kept

    def _returns(self, standings: Sequence[Any], error: Exception | None) -> list[JobReturn]:
        """What a sweeper wants to know: each point's main metric, or that it failed."""
        returns = []
        for standing in standings:
            returned = JobReturn(overrides=standing.point.overrides)
            if standing.status == "done":
                returned.status, returned.return_value = JobStatus.COMPLETED, standing.record["result"].get("metric")
            else:
                returned.status, returned.return_value = JobStatus.FAILED, error
            returns.append(returned)
        return returns


class SlurmLauncher(_Launcher):
    """Points as jobs of a SLURM array."""

    kind = "slurm"


class LocalLauncher(_Launcher):
    """The same on this machine, without SLURM."""

    kind = "local"
