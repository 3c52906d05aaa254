"""Hydra's sweepers `grid` and `optuna`: Hydra 1.3 takes sweepers from packages below `hydra_plugins` only.

Annotations are no strings here, for the same reason as in vlmexp_launcher.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


@dataclass
class GridSettings:
    """Settings of `hydra/sweeper=grid`."""

    _target_: str = "hydra_plugins.vlmexp_sweeper.GridSweeper"
    params: dict[str, Any] = field(default_factory=dict)  # option: values, as on the command line


@dataclass
class OptunaSettings:
    """Settings of `hydra/sweeper=optuna`."""

    _target_: str = "hydra_plugins.vlmexp_sweeper.OptunaSweeper"
    n_trials: int = 20  # points in all
    n_jobs: int = 1  # points that are proposed, and then run, together
    metric: Any = None  # of a run's result, or a list; null: the stage's main metric, of stage=train eval_loss
    direction: Any = None  # maximize | minimize, or a list; null: minimize for losses, else maximize
    max_failure_rate: float = 0.5  # of n_trials; with more failed points the search stops
    seed: int = 0
    sampler: str = "TPESampler"  # a class of optuna.samplers
    sampler_options: dict[str, Any] = field(default_factory=dict)  # further arguments of that class
    params: dict[str, Any] = field(default_factory=dict)  # option: values, as on the command line


_node = OmegaConf.structured(OptunaSettings)
_node.sampler_options._set_flag("struct", False)  # it takes new keys without a `+`
_grid = OmegaConf.structured(GridSettings)
for _name, _settings in (("optuna_settings", _node), ("grid_settings", _grid)):
    _settings.params._set_flag("struct", False)
    ConfigStore.instance().store(group="hydra/sweeper", name=_name, node=_settings, provider="vlmexp")


class GridSweeper(BasicSweeper):  # type: ignore[misc]
    """Hydra's own for every combination; all points are looked at before anything is written, whatever the launcher."""

    def __init__(self, params: Any) -> None:
        super().__init__(max_batch_size=None, params=params)

    def sweep(self, arguments: list[str]) -> Any:
        # Imported late: Hydra imports this module whenever it looks for plugins.
        from vlmexp.launch.checking import check_points, check_size

        lines = [*self._parse_config(), *arguments]
        check_size(lines)
        assert self.config is not None
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        overrides = OverridesParser.create(config_loader=loader).parse_overrides(lines)
        (points,) = self.split_arguments(overrides, None)
        check_points(loader, self.config, points, getattr(self.launcher, "elsewhere", True))
        return super().sweep(arguments)

    def validate_batch_is_legal(self, batch: Any) -> None:
        pass


class OptunaSweeper(Sweeper):
    """Has optuna propose points, and hands them to the launcher."""

    def __init__(self, **settings: Any) -> None:
        plain: Any = OmegaConf.to_object(OmegaConf.create(settings))
        self.settings = OptunaSettings(**plain)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context: Any = hydra_context
        self.config: Any = config
        self.launcher: Any = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> None:
        # Imported late: Hydra imports this module whenever it looks for plugins.
        from vlmexp.launch.checking import ask_libraries, check_point, check_search

        check_search(self.config)
        from vlmexp.launch.proposals import Objective, Proposer
        from vlmexp.launch.search import Search
        from vlmexp.launch.space import read_space
        from vlmexp.launch.sweep import Sweep

        config, settings, loader = self.config, self.settings, self.hydra_context.config_loader
        lines = [*(f"{option}={values}" for option, values in settings.params.items()), *arguments]
        space = read_space(OverridesParser.create(config_loader=loader).parse_overrides(lines))
        objective = Objective.of(settings.metric, settings.direction, config.stage)
        proposer = Proposer(space, objective, settings.sampler, settings.sampler_options, settings.seed)
        probes = list(space.probes())
        configs = [check_point(loader, config, overrides) for overrides in probes]
        for checked in configs:
            objective.check(checked)
        points = [(" ".join(overrides), overrides, checked) for overrides, checked in zip(probes, configs, strict=True)]
        ask_libraries(points, self.launcher.elsewhere)
        search = Search(
            Sweep(Path(str(config.hydra.sweep.dir))),
            proposer,
            launch=lambda batch: self.launcher.launch(batch, initial_job_idx=0),
            points=settings.n_trials,
            together=settings.n_jobs,
            max_failures=settings.max_failure_rate * settings.n_trials,
        )
        search.run([*config.hydra.overrides.hydra, *arguments])
