"""A search: points are proposed by optuna from what the points before them came to.

The directory of the sweep is all there is to remember: before each proposal optuna is told anew what points.jsonl and
the run directories hold. So a search that was killed goes on as if nothing had happened, a point that was resumed
counts with its result, and what a grid has tried in the same directory is known as well.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.trial import FrozenTrial

from vlmexp.errors import UserError
from vlmexp.files import write_text
from vlmexp.launch.client import current, refuse_failures
from vlmexp.launch.proposals import Proposer
from vlmexp.launch.sweep import Standing, Sweep

RESULTS = "optimization_results.yaml"


@dataclass
class Search:
    """Proposes points and has them launched until there are enough.

    Attributes:
        launch: takes the overrides of points and returns when they have ended, well or badly.
        points: how many the search is to have in all.
        together: how many are proposed at a time.
        max_failures: with more points that did not reach their end the search stops.
    """

    sweep: Sweep
    proposer: Proposer
    launch: Callable[[Sequence[Sequence[str]]], Any]
    points: int
    together: int
    max_failures: float

    def run(self, arguments: Sequence[str]) -> None:
        """Search, from where the directory stands, and write optimization_results.yaml.

        Args:
            arguments: the command line, which stage=resume repeats.

        Raises:
            UserError: too many points failed, or another client is at work in the directory.
        """
        self.sweep.directory.mkdir(parents=True, exist_ok=True)
        with _alone(self.sweep):
            self.sweep.search = list(arguments)
            launched: set[int] = set()
            while batch := self._batch(launched):
                self.launch(batch)
                ended = [standing for standing in self._standings() if standing.point.overrides in batch]
                launched |= {standing.point.point for standing in ended}
                self._report(ended)
        standings = self._standings()
        if not any(standing.status == "done" for standing in standings):
            refuse_failures(self.sweep, standings)
        if len(standings) < self.points:
            print(f"The space has only {len(standings)} points, and all have been tried.")
        if bad := sum(standing.status != "done" for standing in standings):
            print(f"{bad} of {len(standings)} points did not reach their end, and the search has gone on without them.")
        print(f"  results  {self.sweep.directory / RESULTS}")
        print(f'  compare  python -m vlmexp stage=compare "compare.runs=[{self.sweep.directory}]"')

    def _standings(self) -> list[Standing]:
        """Of the points of this search's space; the directory may hold others."""
        points = [p for p in self.sweep.points if self.proposer.space.params(p.overrides) is not None]
        return current(self.sweep, points) if points else []

    def _batch(self, launched: set[int]) -> list[list[str]]:
        """What is to run next: first what an earlier client left, then new points."""
        standings = self._standings()
        left = [
            standing.point.overrides
            for standing in standings
            if standing.status not in ("done", "failed") and standing.point.point not in launched
        ]
        return left or self.proposer.propose(standings, min(self.together, self.points - len(standings)))

    def _report(self, ended: Sequence[Standing]) -> None:
        """Say what failed and what is best; stop after too many failures."""
        for standing in ended:
            if standing.status != "done":
                words, log = self.sweep.last_words(standing)
                said = [f"point {standing.point.point} {standing.status}", *words.splitlines(), str(log or "")]
                print(f"  {'  '.join(filter(None, said))}")
        standings = self._standings()
        if sum(standing.status != "done" for standing in standings) > self.max_failures:
            refuse_failures(self.sweep, standings)
        objective, study = self.proposer.objective, self.proposer.study(standings)
        best = study.best_trials if len(objective.metrics) > 1 else study.best_trials[:1]
        if not best:
            return
        solutions = [self._solution(trial) for trial in best]
        results: dict[str, Any] = {"name": "optuna", "solutions": solutions}
        if len(objective.metrics) == 1:
            first = solutions[0]
            results = {"name": "optuna", "best_params": first["params"], "best_value": first["values"][0]}
            results |= {"point": first["point"], "metric": objective.metrics[0]}
        write_text(self.sweep.directory / RESULTS, OmegaConf.to_yaml(OmegaConf.create(results)))
        for found in solutions:
            values = ", ".join(f"{n} {v:.6g}" for n, v in zip(objective.metrics, found["values"], strict=True))
            options = " ".join(f"{option}={value}" for option, value in found["params"].items())
            print(f"  {len(standings)} of {self.points} points, best: point {found['point']}, {values}: {options}")

    def _solution(self, trial: FrozenTrial) -> dict[str, Any]:
        """A trial for people and for a YAML file."""
        overrides = [
            text for text in self.proposer.space.overrides(trial.params) if text not in self.proposer.space.fixed
        ]
        parsed = OverridesParser.create().parse_overrides(overrides)
        params = {override.get_key_element(): override.value() for override in parsed}
        return {"point": trial.user_attrs["point"], "values": trial.values, "params": params}


@contextlib.contextmanager
def _alone(sweep: Sweep) -> Iterator[None]:
    """Keep other clients from proposing points of the same sweep."""
    with (sweep.directory / ".search.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"Another client is searching in {sweep.directory}: wait for it, or end it.") from None
        yield
