"""Searches: on directories that are filled in at once, and as they are typed."""

from __future__ import annotations

import math
import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from tests.conftest import cli_environment
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl, write_json
from vlmexp.launch.client import SweepFailed
from vlmexp.launch.proposals import Objective, Proposer
from vlmexp.launch.search import Search
from vlmexp.launch.space import read_space
from vlmexp.launch.sweep import Plan, Sweep

SPACE = ["stage=probe.stage", "r=choice(4,8,16)", "lr=tag(log,interval(1e-5,1e-1))"]


def quality(options: dict[str, str]) -> dict[str, float] | None:
    """Best at r=16 and lr=1e-3; r=4 fails."""
    if options["r"] == "4":
        return None
    return {"metric": (options["r"] == "16") - (math.log10(float(options["lr"])) + 3) ** 2, "cost": float(options["r"])}


class Killed(Exception):
    pass


def search(
    directory,
    *,
    space=SPACE,
    points=8,
    together=1,
    result=quality,
    dies_at=None,
    max_failures=99.0,
    seed=0,
    **objective,
):
    """Points that end the moment they are launched; at point `dies_at` the client dies."""
    sweep = Sweep(directory)

    def launch(batch):
        sweep.plan = Plan("foreground", {"wait": True}, "code", [])
        for point in sweep.add(batch):
            if point.point == dies_at:
                raise Killed
            values = result(dict(text.split("=", 1) for text in point.overrides))
            record = {"status": "failed", "error": "out of memory"} if values is None else {"status": "done"}
            write_json(sweep.run_directory(point) / "run.json", {**record, "result": values or {}})

    parsed = read_space(OverridesParser.create().parse_overrides(space))
    objective = Objective.of(objective.get("metric"), objective.get("direction"), "pipeline")
    proposer = Proposer(parsed, objective, "TPESampler", {"n_startup_trials": 4}, seed)
    Search(sweep, proposer, launch, points, together, max_failures).run(["hydra/sweeper=optuna"])
    return OmegaConf.to_container(OmegaConf.load(directory / "optimization_results.yaml"))


def overrides_of(directory) -> list[list[str]]:
    return [row["overrides"] for row in read_jsonl(directory / "points.jsonl")]


def test_it_finds_what_is_good(tmp_path, capsys):
    found = search(tmp_path, points=30)
    assert found["best_params"]["r"] == 16
    assert 2e-4 < found["best_params"]["lr"] < 5e-3
    assert found["best_value"] > 0.5
    assert found["best_value"] == read_json(tmp_path / str(found["point"]) / "run.json")["result"]["metric"]
    assert len(overrides_of(tmp_path)) == 30
    said = capsys.readouterr().out
    assert f"30 of 30 points, best: point {found['point']}" in said
    assert "failed  out of memory" in said


def test_a_search_that_was_killed_goes_on_as_if_nothing_had_happened(tmp_path):
    whole = search(tmp_path / "whole")
    for dies_at in (0, 3, 6):
        with pytest.raises(Killed):
            search(tmp_path / "again", dies_at=dies_at)
    assert search(tmp_path / "again") == whole
    assert overrides_of(tmp_path / "again") == overrides_of(tmp_path / "whole")
    search(tmp_path / "other", seed=1)
    assert overrides_of(tmp_path / "whole") != overrides_of(tmp_path / "other")


def test_no_point_is_run_twice(tmp_path, capsys):
    search(tmp_path, space=["r=8,16,32", "lr=1e-3,1e-4"], points=20, together=4)
    assert len({tuple(sorted(point)) for point in overrides_of(tmp_path)}) == 6
    assert "The space has only 6 points, and all have been tried." in capsys.readouterr().out


def test_what_a_grid_has_tried_is_known(tmp_path):
    sweep = Sweep(tmp_path)
    for point in sweep.add([["stage=probe.stage", "r=16", "lr=0.001"], ["stage=other", "r=8", "lr=0.001"]]):
        write_json(sweep.run_directory(point) / "run.json", {"status": "done", "result": {"metric": 99 - point.point}})
    sweep.plan = Plan("foreground", {"wait": True}, "code", [])
    found = search(tmp_path, points=3)
    assert (found["best_value"], found["point"]) == (99, 0)
    assert len(overrides_of(tmp_path)) == 4


def test_losses_are_minimized_and_other_results_as_told(tmp_path):
    def loss(options):
        return {"eval_loss": float(options["r"]), "cost": -float(options["r"])}

    space = ["r=1,2,3"]
    assert search(tmp_path / "a", space=space, result=loss, metric="eval_loss")["best_value"] == 1.0
    assert search(tmp_path / "b", space=space, result=loss, metric="cost")["best_value"] == -1.0
    assert search(tmp_path / "c", space=space, result=loss, metric="cost", direction="minimize")["best_value"] == -3.0


def test_several_metrics_have_several_best_points(tmp_path):
    def result(options):
        return {"score": {"1": 0.1, "2": 0.5, "3": 0.4}[options["r"]], "cost": float(options["r"])}

    goals = {"metric": ["score", "cost"], "direction": ["maximize", "minimize"]}
    found = search(tmp_path, space=["r=1,2,3"], result=result, **goals)
    assert sorted(row["params"]["r"] for row in found["solutions"]) == [1, 2]


def test_a_result_that_is_no_number_is_a_failure(tmp_path):
    def result(options):
        return {"metric": math.nan if options["r"] == "2" else float(options["r"])}

    assert search(tmp_path, space=["r=0,1,2"], result=result)["best_value"] == 1.0


def test_too_many_failures_end_it(tmp_path):
    with pytest.raises(SweepFailed, match=r"3 of 3 points did not reach their end"):
        search(tmp_path, result=lambda options: None, max_failures=2)


def test_a_metric_that_the_stage_does_not_return(tmp_path):
    with pytest.raises(UserError, match=r"metric=vqa: point 0 came to metric, cost; name one of these"):
        search(tmp_path, space=["r=8,16", "lr=1e-3"], metric="vqa")


@pytest.mark.parametrize(
    ("metric", "direction", "part"),
    [(None, "up", "'up' does not exist"), (["a", "b"], "maximize", "1 values and hydra.sweeper.metric 2")],
)
def test_an_objective_that_is_none(metric, direction, part):
    with pytest.raises(UserError, match=part):
        Objective.of(metric, direction, "pipeline")


def test_the_objective_of_training_is_its_loss():
    assert Objective.of(None, None, "train") == Objective(["eval_loss"], ["minimize"])
    assert Objective.of(None, None, "pipeline") == Objective(["metric"], ["maximize"])


def test_a_sampler_that_there_is_not():
    space = read_space(OverridesParser.create().parse_overrides(["r=1,2"]))
    objective = Objective.of(None, None, None)
    for sampler, options, part in (
        ("TPE", {}, "did you mean 'TPESampler'"),
        ("TPESampler", {"n_startup": 3}, "did you mean 'n_startup_trials'"),
        ("GridSampler", {}, "hydra.sweeper.sampler=GridSampler: .*search_space"),
    ):
        with pytest.raises(UserError, match=part):
            Proposer(space, objective, sampler, options, seed=0)


PROBE = """
import os, signal, time

def stage(config, run):
    if run.directory.name == os.environ.get("KILLS_ITS_CLIENT") and len(run.record["attempts"]) == 1:
        os.kill(os.getppid(), signal.SIGKILL)
    if config.peft["r"] == 4:
        raise RuntimeError("out of luck")
    return {"metric": config.peft["r"] / 100 + config.train["learning_rate"]}
"""


@pytest.mark.slow
def test_a_search_as_it_is_typed(cli, tmp_path):
    """A failing point does not end it; its client is killed, and stage=resume goes on."""
    (tmp_path / "probe.py").write_text(PROBE)
    mine = {"PYTHONPATH": os.pathsep.join([cli_environment(tmp_path)["PYTHONPATH"], str(tmp_path)])}
    sweep = tmp_path / "sweep"
    command = [
        "-m", "hydra/sweeper=optuna", "stage=probe.stage", "peft.r=choice(4,8,16)",
        "train.learning_rate=tag(log,interval(1e-5,1e-3))", "hydra.sweeper.n_trials=4", "hydra.sweep.dir=sweep",
    ]  # fmt: skip
    assert cli(*command, **mine, KILLS_ITS_CLIENT="1").returncode == -9
    assert len(overrides_of(sweep)) == 2
    done = cli("stage=resume", f"sweep={sweep}", timeout=120, **mine)
    assert done.returncode == 0, done.stderr
    statuses = [read_json(sweep / str(number) / "run.json")["status"] for number in range(4)]
    assert statuses.count("failed") == sum("peft.r=4" in point for point in overrides_of(sweep)) > 0
    assert "4 of 4 points, best: point" in done.stdout
    assert f"{statuses.count('failed')} of 4 points did not reach their end, and the search has gone" in done.stdout
    best = OmegaConf.load(sweep / "optimization_results.yaml")
    assert best.best_value == max(read_json(path)["result"].get("metric", 0) for path in sweep.glob("[0-9]/run.json"))
    again = cli(*command, **mine)
    assert again.returncode == 0, again.stderr
    assert len(overrides_of(sweep)) == 4


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["hydra/launcher=slurm_local", "hydra.launcher.wait=false"], "its client has to stay"),
        (["hydra/launcher=submitit_local"], "does not work with hydra/launcher=submitit_local: choose local"),
        (["hydra.sweeper.n_jobs=0"], "hydra.sweeper.n_jobs=0 must be at least 1"),
        (["train.logging_steps=1,1.5"], "train.logging_steps=1.5 must be a whole number"),
        (
            ["hydra.sweeper.metric=accuracy"],
            "metric 'accuracy' does not exist; did you mean 'vqa_accuracy'?",
        ),
    ],
    ids=lambda value: str(value[-1]),
)
def test_a_mistake_gets_one_sentence(arguments, part, cli, tmp_path):
    done = cli("-m", "hydra/sweeper=optuna", "peft.r=8,16", "hydra.sweep.dir=sweep", *arguments)
    assert done.returncode == 2
    assert part in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "sweep").exists()
