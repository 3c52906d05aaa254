"""What is wrong with a sweep, said before its first point starts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf, open_dict
from tqdm import tqdm

from vlmexp import distributed
from vlmexp.command_line import CONTINUING
from vlmexp.config import Config
from vlmexp.errors import UserError
from vlmexp.main import check

_LAUNCHERS = "hydra_plugins.vlmexp_launcher."


class _Bar(tqdm):  # type: ignore[type-arg]
    """Without tqdm's thread: it would take the Ctrl-C that is held back while points are submitted, and forget it."""

    monitor_interval = 0


def check_points(loader: ConfigLoader, config: DictConfig, all_overrides: Sequence[Sequence[str]]) -> None:
    """Compose and check every point.

    Args:
        config: of the sweep, with its node `hydra`.

    Raises:
        UserError: a point could not start; nothing has been written so far.
    """
    distributed.refuse_sweep()  # of a preset, which -m does not announce
    check_launcher(config.hydra.launcher)
    subdir = OmegaConf.to_container(config.hydra.sweep, resolve=False)["subdir"]  # type: ignore[call-overload, index]
    if subdir != "${hydra.job.num}":
        raise UserError(
            f"hydra.sweep.subdir={subdir}: the directory of a point is its number, which stage=status and stage=resume "
            "find it by. Leave the option out, and name the sweep's directory with hydra.sweep.dir."
        )
    for number, overrides in enumerate(_Bar(all_overrides, desc="check", unit=" points", leave=False)):
        check_point(loader, config, overrides, f"point {number} ")


def check_point(loader: ConfigLoader, config: DictConfig, overrides: Sequence[str], name: str = "") -> Config:
    """The same for a single one; returns its configuration."""
    name += f"({' '.join(overrides)})"
    composed = loader.load_sweep_config(config, list(overrides))
    if composed.hydra.sweeper.get("params") != config.hydra.sweeper.get("params"):
        raise UserError(f"{name} is a sweep itself, and sweeps do not nest: start it by itself.")
    if composed.run is not None and composed.stage in CONTINUING:
        raise UserError(
            f"{name}: stage={composed.stage} continues run={composed.run} in its own directory, and a point of a sweep "
            "has another: start it without -m, or leave out run=."
        )
    with open_dict(composed):
        del composed["hydra"]
    try:
        return check(composed)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def check_launcher(settings: Mapping[str, Any] | DictConfig) -> None:
    """Raise a UserError if a launcher's number is too small: no point would ever start."""
    for name in ("array_parallelism", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task"):
        value = settings.get(name)
        if value is not None and not (isinstance(value, int) and value >= 1):
            raise UserError(f"hydra.launcher.{name}={value} must be a whole number and at least 1.")


def check_search(config: DictConfig) -> None:
    """Raise a UserError if a search cannot be made: a launcher without results, numbers out of range."""
    launcher, sweeper = config.hydra.launcher, config.hydra.sweeper
    check_launcher(launcher)
    if not str(launcher.get("_target_")).startswith(_LAUNCHERS):
        raise UserError(
            f"hydra/sweeper=optuna does not work with hydra/launcher={config.hydra.runtime.choices['hydra/launcher']}: "
            "choose local, slurm_local or slurm."
        )
    if not launcher.get("wait", True):
        raise UserError(
            "hydra.launcher.wait=false: a search needs the results of its points before it proposes others, so its "
            "client has to stay. Leave the option out."
        )
    for name in ("n_trials", "n_jobs"):
        if sweeper[name] < 1:
            raise UserError(f"hydra.sweeper.{name}={sweeper[name]} must be at least 1.")
    if not 0 <= sweeper.max_failure_rate <= 1:
        raise UserError(f"hydra.sweeper.max_failure_rate={sweeper.max_failure_rate} must be from 0 to 1.")
