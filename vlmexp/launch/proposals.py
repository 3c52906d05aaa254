"""What optuna proposes, given points and what they came to."""

from __future__ import annotations

import inspect
import math
import random
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from vlmexp.config import Config
from vlmexp.errors import UserError, unknown
from vlmexp.evaluation.lookup import metric_names
from vlmexp.launch.space import Space
from vlmexp.launch.sweep import Standing

LOSSES = ("loss", "eval_loss")
# What the results of the stages hold; those of evaluations hold each metric as well.
RESULTS = {
    "train": ("eval_loss", "loss", "best_metric", "steps"),
    "eval_base": ("metric",),
    "eval_finetuned": ("metric",),
    "pipeline": ("metric", "base_metric"),
}
DIRECTIONS = ("maximize", "minimize")
_ATTEMPTS = 20  # of the sampler at a point that has not been tried

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Objective:
    """Which values of a run's result are to become large or small; several make a Pareto front."""

    metrics: list[str]
    directions: list[str]

    @classmethod
    def of(cls, metric: str | list[str] | None, direction: str | list[str] | None, stage: str | None) -> Objective:
        """What the settings say, or what the stage's main result suggests.

        Raises:
            UserError: no such direction, or not one for each metric.
        """
        metrics = _listed(metric if metric is not None else "eval_loss" if stage == "train" else "metric")
        suggested = ["minimize" if name in LOSSES else "maximize" for name in metrics]
        directions = suggested if direction is None else _listed(direction)
        for name in directions:
            if name not in DIRECTIONS:
                raise unknown("hydra.sweeper.direction", name, DIRECTIONS)
        if len(directions) != len(metrics):
            raise UserError(
                f"hydra.sweeper.direction has {len(directions)} values and hydra.sweeper.metric {len(metrics)}: "
                "name one direction for each metric."
            )
        return cls(metrics, directions)

    def check(self, config: Config) -> None:
        """Raise a UserError if the stage will return no such metric; of a stage of one's own nobody knows."""
        if config.stage not in RESULTS:
            return
        scores = [] if config.stage == "train" else metric_names(config.evaluation.metrics or config.dataset.metrics)
        for name in self.metrics:
            if name not in (known := [*RESULTS[config.stage], *scores]):
                raise unknown("hydra.sweeper.metric", name, known)

    def values(self, standing: Standing) -> list[float] | None:
        """What a finished point came to; None if a value is no finite number.

        Raises:
            UserError: its stage returns no such metric.
        """
        result = (standing.record or {}).get("result") or {}
        for name in self.metrics:
            if name not in result:
                have = ", ".join(map(str, result)) or "nothing"
                raise UserError(
                    f"hydra.sweeper.metric={name}: point {standing.point.point} came to {have}; name one of these."
                )
        values = [result[name] for name in self.metrics]
        return values if all(isinstance(value, int | float) and math.isfinite(value) for value in values) else None


class Proposer:
    """Asks optuna. The same points with the same results get the same proposals."""

    def __init__(
        self, space: Space, objective: Objective, sampler: str, sampler_options: Mapping[str, Any], seed: int
    ) -> None:
        self.space, self.objective, self.seed = space, objective, seed
        known = [name for name in optuna.samplers.__all__ if name.endswith("Sampler") and not name.startswith("Base")]
        if sampler not in known:
            raise unknown("hydra.sweeper.sampler", sampler, known)
        self._class = getattr(optuna.samplers, sampler)
        self._options = dict(sampler_options)
        accepted = inspect.signature(self._class).parameters
        for name in self._options:
            if name not in accepted:
                raise unknown(f"hydra.sweeper.sampler_options: {sampler}'s option", name, accepted)
        if "constant_liar" in accepted:  # points that run together are not to be alike
            self._options.setdefault("constant_liar", True)
        try:
            self._sampler(0)
        except (TypeError, ValueError, ImportError) as error:
            raise UserError(f"hydra.sweeper.sampler={sampler}: {' '.join(str(error).split())}") from None

    def study(self, standings: Sequence[Standing]) -> optuna.Study:
        """All points of the space, as optuna's trials: those that are under way as running."""
        study = optuna.create_study(directions=self.objective.directions)  # type: ignore[arg-type]
        for standing in standings:
            params = self.space.params(standing.point.overrides)
            if params is None:
                continue
            values = self.objective.values(standing) if standing.status == "done" else None
            under_way = standing.status in ("pending", "running")
            ended = TrialState.FAIL if values is None else TrialState.COMPLETE
            trial = optuna.create_trial(
                state=TrialState.RUNNING if under_way else ended,
                values=values,
                params=params,
                distributions=self.space.dimensions,
                user_attrs={"point": standing.point.point},
            )
            study.add_trial(trial)
        return study

    def propose(self, standings: Sequence[Standing], count: int) -> list[list[str]]:
        """Overrides of up to `count` points that are not among the standings; fewer where nothing else is left."""
        study = self.study(standings)
        tried = {tuple(standing.point.overrides) for standing in standings}
        proposed: list[list[str]] = []
        for number in range(len(standings), len(standings) + count):
            overrides = self._untried(study, number, tried)
            if overrides is None:
                break
            tried.add(tuple(overrides))
            proposed.append(overrides)
        return proposed

    def _untried(self, study: optuna.Study, number: int, tried: set[tuple[str, ...]]) -> list[str] | None:
        """The sampler's proposal; where it insists on what has been tried, the first point that has not been."""
        for attempt in range(_ATTEMPTS):
            study.sampler = self._sampler(random.Random(f"{self.seed}:{number}:{attempt}").getrandbits(31))
            trial = study.ask(self.space.dimensions)
            overrides = self.space.overrides(trial.params)
            if tuple(overrides) not in tried:
                return overrides
            study.tell(trial, state=TrialState.FAIL)
        return next((point for point in self.space.grid() if tuple(point) not in tried), None)

    def _sampler(self, seed: int) -> optuna.samplers.BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return self._class(seed=seed, **self._options)  # type: ignore[no-any-return]


def _listed(value: str | list[str]) -> list[str]:
    return list(value) if isinstance(value, list) else [value]
