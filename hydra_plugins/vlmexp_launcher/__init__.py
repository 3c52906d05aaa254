"""Hydra's launchers `slurm`, `slurm_local` and `local`: Hydra 1.3 takes them from packages below `hydra_plugins` only.

Annotations are no strings here: Hydra executes the module without an entry in sys.modules, where dataclasses would look
their names up.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from hydra_plugins.hydra_submitit_launcher.config import LocalQueueConf, SlurmQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import BaseSubmititLauncher
from omegaconf import OmegaConf


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


@dataclass
class ForegroundSettings:
    """Settings of `hydra/launcher=local`; there are none."""

    _target_: str = "hydra_plugins.vlmexp_launcher.ForegroundLauncher"


ConfigStore.instance().store(group="hydra/launcher", name="slurm_settings", node=SlurmSettings, provider="vlmexp")
ConfigStore.instance().store(group="hydra/launcher", name="slurm_local_settings", node=LocalSettings, provider="vlmexp")
ConfigStore.instance().store(group="hydra/launcher", name="local_settings", node=ForegroundSettings, provider="vlmexp")


class _Ended(JobReturn):
    """What became of a point; unlike Hydra's, it prints nothing before it raises an error that names all points."""

    @property
    def return_value(self) -> Any:
        if self.status == JobStatus.FAILED:
            raise self._return_value
        return self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


class _Launcher(BaseSubmititLauncher):  # type: ignore[misc]
    """Checks every point, records the sweep, copies the code, submits, and tells the truth about the end.

    A job runs the command line of its point, so it does what a single run does.
    """

    kind: ClassVar[str]
    elsewhere: ClassVar[bool] = False  # whether points run on other machines

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        # Imported late: Hydra imports this module whenever it looks for plugins.
        from vlmexp.launch.checking import check_points
        from vlmexp.launch.client import SweepFailed, current, refuse_another_launcher, refuse_failures, run_points
        from vlmexp.launch.snapshot import take_snapshot
        from vlmexp.launch.sweep import Plan, Sweep
        from vlmexp.main import CONFIG_DIR
        from vlmexp.storage import writing

        setup_globals()
        sweep = Sweep(Path(str(self.config.hydra.sweep.dir)))
        try:
            if self.config.hydra.runtime.choices["hydra/sweeper"] != "grid":  # which has looked at them
                check_points(self.hydra_context.config_loader, self.config, job_overrides, self.elsewhere)
        except Exception:
            sweep.discard_unless_begun()
            raise
        given, hydra_overrides = self._search_path()
        folders = [Path(text.removeprefix("file://")).absolute() for text in given if text.startswith("file://")]
        with writing(sweep.directory, "or choose another place with hydra.sweep.dir"):
            snapshot = take_snapshot(sweep.directory / "code", CONFIG_DIR, folders)
        copies = (f"file://{snapshot}/searchpath-{number}" for number in range(len(folders)))
        if given:
            searched = [next(copies) if text.startswith("file://") else text for text in given]
            quoted = (QuotedString(text, Quote.single).with_quotes() for text in searched)
            hydra_overrides.append(f"hydra.searchpath=[{','.join(quoted)}]")
        plan = Plan(self.kind, self.params, str(snapshot.relative_to(sweep.directory)), hydra_overrides)
        with writing(sweep.directory, "or choose another place with hydra.sweep.dir"), sweep.locked():
            refuse_another_launcher(sweep, self.kind)
            sweep.plan = plan
            points = sweep.add(job_overrides)  # last: what has points can be resumed
        standings = current(sweep, list({point.point: point for point in points}.values()))
        queued = [s.point for s in standings if s.status in ("pending", "running")]
        todo = [s for s in standings if s.status not in ("done", "pending", "running")]
        also = f", {len(queued)} under way" if queued else ""
        print(f"{sweep.directory}: {len(todo)} of {len(standings)} points to run{also}", flush=True)
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

    def _search_path(self) -> tuple[list[str], list[str]]:
        """Where the user's own config is, and the rest of what the command line says to Hydra about a job."""
        given: Any = OmegaConf.to_object(self.config.hydra.searchpath) or []
        kept = [text for text in self.config.hydra.overrides.hydra if text.startswith(("hydra.job.", "+hydra.job."))]
        return list(given), kept

    def _returns(self, standings: Sequence[Any], error: Exception | None) -> list[JobReturn]:
        """What a sweeper wants to know: each point's main metric, or that it failed."""
        returns: list[JobReturn] = []
        for standing in standings:
            returned = _Ended(overrides=standing.point.overrides)
            if standing.status == "done":
                returned.status, returned.return_value = JobStatus.COMPLETED, standing.record["result"].get("metric")
            else:
                returned.status, returned.return_value = JobStatus.FAILED, error
            returns.append(returned)
        return returns


class SlurmLauncher(_Launcher):
    """Points as jobs of a SLURM array."""

    kind = "slurm"
    elsewhere = True


class LocalLauncher(_Launcher):
    """The same on this machine, without SLURM."""

    kind = "local"


class ForegroundLauncher(_Launcher):
    """One point after the other on this terminal, each in a process of its own, which takes its memory with it."""

    kind = "foreground"

    def __init__(self) -> None:
        super().__init__(wait=True, cancel_on_interrupt=True)
