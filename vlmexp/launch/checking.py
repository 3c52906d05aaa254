"""What is wrong with a sweep, said before its first point starts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vlmexp import distributed
from vlmexp.command_line import CONTINUING
from vlmexp.config import Config
from vlmexp.errors import UserError, shown
from vlmexp.main import READING, check, without_secrets

_LAUNCHERS = "hydra_plugins.vlmexp_launcher."
_LEAST = {
    "array_parallelism": 1, "timeout_min": 1, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "signal_delay_s": 0,
    "max_num_timeout": 0,
}  # fmt: skip
# By so many seconds, says the manual of sbatch, SLURM may send the signal of --signal before its time. What a job needs
# to start with is not known here; a job that is always stopped before it gets anywhere says so by itself.
_EARLY_S = 60
_OPTIONAL = ("cpus_per_task",)
# What sbatch calls settings of the launcher, without which jobs would not come back from their time limit.
_OURS_OF_SBATCH = {
    "time": "timeout_min", "time-min": "timeout_min", "signal": "signal_delay_s", "no-requeue": "max_num_timeout",
    "array": "array_parallelism",
}  # fmt: skip


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
    if not all_overrides:
        raise UserError(
            "The sweep has no points: a glob() matches no name of a choice, or a range() has none between its ends."
        )
    count = Counter(map(tuple, all_overrides))
    if len(count) < len(all_overrides) and config.hydra.runtime.choices["hydra/sweeper"] == "basic":  # not of a search
        twice = shown(" ".join(count.most_common(1)[0][0]))
        raise UserError(f"The point ({twice}) is there twice: leave out the value that is repeated.")
    for number, overrides in enumerate(_Bar(all_overrides, desc="check", unit=" points", leave=False)):
        check_point(loader, config, overrides, f"point {number} ")


def check_point(loader: ConfigLoader, config: DictConfig, overrides: Sequence[str], name: str = "") -> Config:
    """The same for a single one; returns its configuration."""
    name += f"({shown(' '.join(overrides))})"
    composed = loader.load_sweep_config(config, list(overrides))
    if composed.hydra.sweeper.get("params") != config.hydra.sweeper.get("params"):
        raise UserError(f"{name} is a sweep itself, and sweeps do not nest: start it by itself.")
    if composed.stage in READING:
        raise UserError(f"{name}: stage={composed.stage} makes no run, so it is no point of a sweep: leave it out.")
    if composed.run is not None and composed.stage in CONTINUING:
        raise UserError(
            f"{name}: stage={composed.stage} continues run={composed.run} in its own directory, and a point of a sweep "
            "has another: start it without -m, or leave out run=."
        )
    try:
        return check(without_secrets(composed))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def check_launcher(settings: Mapping[str, Any] | DictConfig) -> None:
    """Raise a UserError for numbers of a launcher with which no point would start, or none would come to its end."""
    for name, least in _LEAST.items():
        value = settings.get(name)
        left_out = value is None and (name not in settings or name in _OPTIONAL)
        if not left_out and not (type(value) is int and value >= least):
            raise UserError(f"hydra.launcher.{name}={value} must be a whole number and at least {least}.")
    if "signal_delay_s" in settings:
        _check_time_limit(settings["timeout_min"], settings["signal_delay_s"])
    for name, value in (settings.get("additional_parameters") or {}).items():
        if option := _OURS_OF_SBATCH.get(str(name).replace("_", "-")):
            raise UserError(
                f"hydra.launcher.additional_parameters.{name}={value} would overrule "
                f"hydra.launcher.{option}: leave it out, and set hydra.launcher.{option}."
            )


def _check_time_limit(minutes: int, delay_s: int) -> None:
    """Raise a UserError if jobs might be told of their time limit as they start, do nothing, and start again."""
    if 60 * minutes - delay_s > _EARLY_S:
        return
    least = (delay_s + _EARLY_S) // 60 + 1
    raise UserError(
        f"hydra.launcher.timeout_min={minutes} is too short for hydra.launcher.signal_delay_s={delay_s}: a job is told "
        f"to save {delay_s} s before its limit, which SLURM may do {_EARLY_S} s too early, so it could be told as it "
        f"starts. Set hydra.launcher.timeout_min to {least} or more, or lower hydra.launcher.signal_delay_s."
    )


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
