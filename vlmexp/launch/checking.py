"""What is wrong with a sweep, said before its first point starts."""

from __future__ import annotations

import dataclasses
import logging
import math
import multiprocessing
import re
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from vlmexp import distributed
from vlmexp.command_line import CONTINUING
from vlmexp.config import Config
from vlmexp.errors import UserError, shown
from vlmexp.files import digest
from vlmexp.main import ASKING_LIBRARIES, READING, check
from vlmexp.mistyped import refuse_what_stays

_LAUNCHERS = "hydra_plugins.vlmexp_launcher."
_LEAST = {
    "array_parallelism": 1, "timeout_min": 1, "nodes": 1, "tasks_per_node": 1, "cpus_per_task": 1, "signal_delay_s": 0,
    "max_num_timeout": 0, "gpus_per_node": 0, "mem_gb": 1,
}  # fmt: skip
# By so many seconds, says the manual of sbatch, SLURM may send the signal of --signal before its time. What a job needs
# to start with is not known here; a job that is always stopped before it gets anywhere says so by itself.
_EARLY_S = 60
_OPTIONAL = ("cpus_per_task", "gpus_per_node", "mem_gb")
_TEXTS = ("partition", "qos", "account", "constraint", "comment", "exclude")
# What sbatch calls settings of the launcher, without which jobs would not come back from their time limit.
_OURS_OF_SBATCH = {
    "time": "timeout_min", "time-min": "timeout_min", "signal": "signal_delay_s", "no-requeue": "max_num_timeout",
    "array": "array_parallelism",
}  # fmt: skip
MOST_POINTS = 10_000  # of a sweep; each is looked at before the first starts
_ALL_ASKED = 64  # so many points are shown to the libraries, and behind them those with a value that none had before
# What a library says of the machine it is on, which need not be like those that the points run on.
_OF_THE_MACHINE = re.compile(r"gpu|cuda|ampere|not installed|flash", re.IGNORECASE)
_Point = tuple[str, Sequence[str], Config]  # what it is called, its overrides, its config
log = logging.getLogger(__name__)


class _Bar(tqdm):  # type: ignore[type-arg]
    """Without tqdm's thread: it would take the Ctrl-C that is held back while points are submitted, and forget it."""

    monitor_interval = 0


def check_size(lines: Sequence[str]) -> None:
    """Raise a UserError for a grid of too many points, before they are written out; `lines` are its overrides."""
    counts = [_values(override) for override in OverridesParser.create().parse_overrides(list(lines))]
    if (points := math.prod(counts)) > MOST_POINTS:
        raise UserError(
            f"The sweep has {points:,} points, and may have {MOST_POINTS:,}: vary less, or search with "
            "hydra/sweeper=optuna."
        )


def _values(override: Override) -> int:
    """How many points an override makes of one; what a glob() finds is few, and counted as one."""
    if not override.is_discrete_sweep():
        return 1
    value = override.value()
    if not isinstance(value, RangeSweep):
        return len(value.list) if isinstance(value, ChoiceSweep) else 1
    ends = [float(end) if end is not None else 0.0 for end in (value.start, value.stop, value.step)]
    if not all(map(math.isfinite, ends)) or ends[2] == 0:
        raise UserError(f"{override.input_line}: range(START,STOP,STEP) needs finite numbers and a step other than 0.")
    return max(0, math.ceil((ends[1] - ends[0]) / ends[2]))


def check_points(
    loader: ConfigLoader, config: DictConfig, all_overrides: Sequence[Sequence[str]], elsewhere: bool = False
) -> None:
    """Compose and check every point.

    Args:
        config: of the sweep, with its node `hydra`.
        elsewhere: whether they run on other machines than this.

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
    is_grid = config.hydra.runtime.choices["hydra/sweeper"] in ("grid", "basic")  # a search may repeat a point
    common = set.intersection(*map(set, all_overrides)) if len(all_overrides) > 1 else set()
    points, first = list[_Point](), dict[str, str]()
    for number, overrides in enumerate(_Bar(all_overrides, desc="check", unit=" points", leave=False, disable=None)):
        title = " ".join(text for text in overrides if text not in common) or " ".join(overrides[-1:])
        checked = check_point(loader, config, overrides, f"point {number} ")
        same = first.setdefault(digest(dataclasses.asdict(checked)), title)
        if is_grid and (len(first) <= number):
            again = "" if same == title else f", as ({shown(title)}) again"
            raise UserError(f"The point ({shown(same)}) is there twice{again}: leave out the value that is repeated.")
        points.append((f"point {number} ({shown(title)})", overrides, checked))
    if is_grid:
        ask_libraries(points, elsewhere)


def ask_libraries(points: Sequence[_Point], elsewhere: bool) -> None:
    """Raise a UserError if a library would refuse one of the points when it starts.

    Args:
        elsewhere: whether they run on other machines, so that what a library misses on this one does not count.
    """
    asked, seen = list[_Point](), set[str]()
    for point in points:
        _, overrides, config = point
        if config.stage in ASKING_LIBRARIES and (len(asked) < _ALL_ASKED or not seen.issuperset(overrides)):
            asked.append(point)
            seen.update(overrides)
    ask = _complaint if "torch" in sys.modules else _from_child
    if asked and (complaint := ask(asked, elsewhere)):
        raise UserError(complaint)


def _complaint(points: Sequence[_Point], elsewhere: bool) -> str | None:
    """What the libraries say of the first point that they refuse."""
    from vlmexp.pipeline import check_options

    for name, _, config in points:
        try:
            check_options(config)
        except UserError as error:
            if not (elsewhere and _OF_THE_MACHINE.search(str(error))):
                return f"{name}: {error}"
    return None


def _from_child(points: Sequence[_Point], elsewhere: bool) -> str | None:
    """The same from a process of its own, which takes the memory of the libraries with it: the client may stay long."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_tell, args=(points, elsewhere, sender), daemon=True)
    child.start()
    sender.close()
    try:
        complaint: str | None = receiver.recv()
    except EOFError:
        complaint = None
        log.warning("The libraries could not be asked about the points (their process has ended): they start unasked.")
    child.join()
    return complaint


def _tell(points: Sequence[_Point], elsewhere: bool, sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a Ctrl-C is the client's to speak of
    sender.send(_complaint(points, elsewhere))


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
        checked = check(composed)
        refuse_what_stays(overrides, dataclasses.asdict(checked))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    return checked


def check_launcher(settings: Mapping[str, Any] | DictConfig) -> None:
    """Raise a UserError for numbers of a launcher with which no point would start, or none would come to its end."""
    for name, least in _LEAST.items():
        value = settings.get(name)
        left_out = value is None and (name not in settings or name in _OPTIONAL)
        if not left_out and not (type(value) is int and value >= least):
            raise UserError(f"hydra.launcher.{name}={value} must be a whole number and at least {least}.")
    for name in _TEXTS:
        if str(settings.get(name)).strip() == "":
            raise UserError(f"hydra.launcher.{name}={settings[name]!r} is empty: give it a value, or leave it out.")
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
