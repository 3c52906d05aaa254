"""Hydra's sweeper `optuna`: Hydra 1.3 takes sweepers from packages below `hydra_plugins` only.

Annotations are no strings here, for the same reason as in vlmexp_launcher.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


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
_node.params._set_flag("struct", False)
ConfigStore.instance().store(group="hydra/sweeper", name="optuna_settings", node=_node, provider="vlmexp")


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
        from vlmexp.launch.checking import check_point, check_search

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
        for overrides in space.probes():
            objective.check(check_point(loader, config, overrides))
        search = Search(
            Sweep(Path(str(config.hydra.sweep.dir))),
            proposer,
            launch=lambda batch: self.launcher.launch(batch, initial_job_idx=0),
            points=settings.n_trials,
            together=settings.n_jobs,
            max_failures=settings.max_failure_rate * settings.n_trials,
        )
        search.run([*config.hydra.overrides.hydra, *arguments])
