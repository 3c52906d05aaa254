"""A sweep's directory from somebody else: what stage=resume and stage=status do with it, and with one's own."""

from __future__ import annotations

import dataclasses
import os
import sys
from pathlib import Path

import pytest

from vlmexp import main
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl, write_json, write_jsonl
from vlmexp.launch import commands, seal
from vlmexp.launch.commands import resume, status
from vlmexp.launch.snapshot import contents, forget_caches, is_copy, python_environment, take_snapshot
from vlmexp.launch.sweep import Plan, Sweep

SETTINGS = {
    "wait": True, "cancel_on_interrupt": False, "max_num_timeout": 0, "array_parallelism": 2, "gpus_per_node": None,
    "name": "vlmexp", "setup": None, "additional_parameters": {"requeue": True}, "partition": "gpu,long",
}  # fmt: skip


@pytest.fixture(autouse=True)
def config_dir(tmp_path, monkeypatch) -> Path:
    """Where the user's key is, and a small package with its configuration in the place of the real one."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    here = tmp_path / "here"
    for file in (
        "vlmexp/main.py", "vlmexp/conf/model/qwen2vl.yaml", "hydra_plugins/vlmexp_launcher/__init__.py",
        "hydra_plugins/vlmexp_sweeper/__init__.py",
    ):  # fmt: skip
        (here / file).parent.mkdir(parents=True, exist_ok=True)
        (here / file).write_text(file)
    monkeypatch.setattr("vlmexp.launch.snapshot.PACKAGE", here / "vlmexp")
    monkeypatch.setattr("vlmexp.launch.snapshot.git_state", lambda: {"sha": "abc", "diff": ""})
    monkeypatch.setattr(main, "CONFIG_DIR", here / "vlmexp" / "conf")
    return here / "vlmexp" / "conf"


@pytest.fixture
def launched(monkeypatch) -> list[Plan]:
    """What stage=resume hands to the queue, in the place of doing so."""
    plans: list[Plan] = []
    monkeypatch.setattr(commands, "run_points", lambda sweep, points, plan, queued: plans.append(plan) or [])
    monkeypatch.setattr(
        os, "execve", lambda path, command, environment: plans.append(command) or sys.exit(0), raising=True
    )
    return plans


def make(folder: Path, *overrides: str, **plan) -> Sweep:
    """A sweep as a client of the user's leaves it."""
    sweep = Sweep(folder)
    sweep.directory.mkdir(parents=True)
    snapshot = take_snapshot(sweep.directory / "code", main.CONFIG_DIR)
    values = {"settings": SETTINGS, "hydra_overrides": []} | plan
    sweep.plan = Plan(
        "local", values["settings"], str(snapshot.relative_to(sweep.directory)), values["hydra_overrides"]
    )
    sweep.add([[*overrides, f"seed={seed}"] for seed in (0, 1)])
    return sweep


def as_somebody_elses(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "other"))


def asked(sweep: Sweep, *arguments: str) -> str:
    """What the user is asked for their word on."""
    with pytest.raises(UserError, match="trust_run=true") as refused:
        resume(["stage=resume", f"sweep={sweep.directory}", *arguments])
    return str(refused.value)


def test_ones_own_sweep_is_resumed_as_it_was_typed(launched, tmp_path):
    """With a stage, settings and code of one's own, whatever the code has become since."""
    sweep = Sweep(tmp_path / "sweep")
    (sweep.directory / "code" / "old").mkdir(parents=True)
    (sweep.directory / "code" / "old" / "vlmexp.py").write_text("older = True\n")
    sweep.plan = Plan("local", SETTINGS | {"setup": ["module load cuda"]}, "code/old", ["hydra.searchpath=[file:///x]"])
    sweep.add([["stage=mine.stage", "seed=0"]])
    resume(["stage=resume", f"sweep={sweep.directory}"])
    (plan,) = launched
    assert (plan.code, plan.settings["setup"]) == ("code/old", ["module load cuda"])
    assert (tmp_path / "state" / "vlmexp" / "key").stat().st_mode & 0o077 == 0
    assert sweep.points == [dataclasses.replace(sweep.points[0], seal=None)], "a seal is no part of what a point is"


def test_a_sweep_of_options_alone_needs_no_word(launched, monkeypatch, tmp_path):
    sweep = make(tmp_path / "sweep", "model=qwen2vl", "peft.r=8")
    as_somebody_elses(monkeypatch, tmp_path)
    resume(["stage=resume", f"sweep={sweep.directory}"])
    assert len(launched) == 1


@pytest.mark.parametrize(
    "trap",
    [
        "stage=evil.go", "model.trust_remote_code=true", "+hydra.job.env_set={PATH: /evil}", "model=evil",
        "tracking.name=${oc.env:HOME}", "trust_run=true",
    ],
)  # fmt: skip
def test_points_with_traps_wait_for_the_users_word(trap, launched, monkeypatch, tmp_path, capsys):
    sweep = make(tmp_path / "sweep", trap)
    as_somebody_elses(monkeypatch, tmp_path)
    assert trap in asked(sweep)
    assert launched == []
    resume(["stage=resume", f"sweep={sweep.directory}", "trust_run=true"])
    assert len(launched) == 1
    assert trap in capsys.readouterr().err


@pytest.mark.parametrize(
    "trap",
    [
        {"setup": ["touch ran"]}, {"additional_parameters": {"prolog": "/evil"}},
        {"additional_parameters": {"requeue": "x"}},
        {"srun_args": ["--task-prolog=/evil"]}, {"partition": "gpu\ntouch ran"}, {"python": "/evil"},
        {"comment": "'; touch ran"},
    ],
    ids=str,
)  # fmt: skip
def test_settings_with_traps_wait_unless_they_are_given_anew(trap, launched, monkeypatch, tmp_path):
    sweep = make(tmp_path / "sweep", settings=SETTINGS | trap)
    as_somebody_elses(monkeypatch, tmp_path)
    ((name, _),) = trap.items()
    assert f"hydra.launcher.{name}=" in asked(sweep)
    resume(["stage=resume", f"sweep={sweep.directory}", f"hydra.launcher.{name}=null"])
    assert launched[0].settings[name] is None


def test_arguments_for_hydra_wait(monkeypatch, tmp_path):
    sweep = make(tmp_path / "sweep", hydra_overrides=["hydra.searchpath=['file:///evil']"])
    as_somebody_elses(monkeypatch, tmp_path)
    assert "hydra.searchpath=['file:///evil']" in asked(sweep)


@pytest.mark.parametrize(
    "file",
    [
        "vlmexp/main.py",
        "torch.py",
        "sitecustomize.py",
        "torch.pyc",
        "hydra_plugins/evil/__init__.py",
        "vlmexp/conf/evil.yaml",
    ],
)
@pytest.mark.parametrize("ours", [True, False], ids=["own", "foreign"])
def test_other_code_waits(ours, file, launched, monkeypatch, tmp_path):
    """Also in one's own sweep, if somebody has changed it there."""
    sweep = make(tmp_path / "sweep")
    if not ours:
        as_somebody_elses(monkeypatch, tmp_path)
    path = sweep.directory / sweep.plan.code / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("import os; os.system('touch ran')\n")
    assert "a copy of other code than there is here, which resume.code=current takes" in asked(sweep)
    resume(["stage=resume", f"sweep={sweep.directory}", "resume.code=current"])
    assert is_copy(sweep.directory / launched[0].code, main.CONFIG_DIR)
    assert not (sweep.directory / launched[0].code / "torch.py").exists()


def test_compiled_code_is_forgotten(launched, tmp_path):
    sweep = make(tmp_path / "sweep")
    cache = sweep.directory / sweep.plan.code / "vlmexp" / "__pycache__"
    cache.mkdir()
    (cache / "main.cpython-311.pyc").write_bytes(b"evil")
    resume(["stage=resume", f"sweep={sweep.directory}"])
    assert len(launched) == 1
    assert not cache.exists()


def test_a_search_of_somebody_else_waits(launched, monkeypatch, tmp_path):
    sweep = make(tmp_path / "sweep")
    sweep.search = ["hydra/sweeper=optuna", "stage=evil.go", "peft.r=choice(8,16)"]
    with pytest.raises(SystemExit):
        resume(["stage=resume", f"sweep={sweep.directory}"])
    assert launched[-1][4:7] == ["hydra/sweeper=optuna", "stage=evil.go", "peft.r=choice(8,16)"]
    as_somebody_elses(monkeypatch, tmp_path)
    said = asked(sweep)
    assert "hydra/sweeper=optuna; stage=evil.go. If" in said


def test_what_is_changed_is_not_ours(tmp_path):
    sweep = make(tmp_path / "sweep", "peft.r=8")
    rows = read_jsonl(sweep.directory / "points.jsonl")
    assert all(map(sweep.is_ours, sweep.points))
    write_jsonl(sweep.directory / "points.jsonl", [row | {"overrides": ["stage=evil.go"]} for row in rows])
    assert not any(map(sweep.is_ours, sweep.points))
    plan = read_json(sweep.directory / "launch.json")
    assert sweep.is_ours(sweep.plan)
    write_json(sweep.directory / "launch.json", plan | {"settings": SETTINGS | {"setup": ["evil"]}})
    assert not sweep.is_ours(sweep.plan)
    assert not seal.is_ours(["x"], "")
    assert not seal.is_ours(["x"], "é")


def test_without_a_place_for_the_key_nothing_is_ours(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    sweep = make(tmp_path / "sweep", "stage=mine.stage")
    assert "stage=mine.stage" in asked(sweep)


def test_links_wait(tmp_path):
    sweep = make(tmp_path / "sweep")
    (sweep.directory / "jobs.jsonl").symlink_to(tmp_path / ".bashrc")
    assert "jobs.jsonl -> " in asked(sweep)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("points.jsonl", '{"point": 0, "overrides": ["seed=0"], "directory": "../../home"}\n'),
        ("points.jsonl", '{"point": 0, "overrides": "seed=0", "directory": "0"}\n'),
        ("points.jsonl", '["seed=0"]\n'),
        ("points.jsonl", '{"evil": 1}\n'),
        ("launch.json", '{"kind": "evil", "settings": {}, "code": "code", "hydra_overrides": []}'),
        ("launch.json", '{"kind": "local", "settings": {}, "code": "/evil", "hydra_overrides": []}'),
        ("launch.json", '{"kind": "local", "settings": {}, "code": "../evil", "hydra_overrides": []}'),
        ("launch.json", "[]"),
        ("jobs.jsonl", '{"point": 0, "job": "../../1", "queue": "local", "submitted": "x"}\n'),
        ("jobs.jsonl", '{"point": 0, "job": "--all", "queue": "local", "submitted": "x"}\n'),
    ],
)
def test_files_of_another_shape_are_a_sentence(file, text, tmp_path):
    sweep = make(tmp_path / "sweep")
    (sweep.directory / file).write_text(text)
    for command in (status, resume):
        with pytest.raises(UserError, match=rf"{file} is damaged"):
            command([f"stage={command.__name__}", f"sweep={sweep.directory}"])


def test_a_copy_of_a_name_that_is_taken_replaces_what_is_there(tmp_path):
    first = take_snapshot(tmp_path / "code", main.CONFIG_DIR)
    again = take_snapshot(tmp_path / "code", main.CONFIG_DIR)
    assert first == again
    (first / "vlmexp" / "main.py").write_text("evil")
    (first / "torch.py").write_text("evil")
    third = take_snapshot(tmp_path / "code", main.CONFIG_DIR)
    assert third == first
    assert not (third / "torch.py").exists()
    assert [path.name for path in (tmp_path / "code").iterdir()] == [first.name]
    (third / "vlmexp" / "__pycache__").mkdir()
    (third / "vlmexp" / "__pycache__" / "x.pyc").touch()
    before = contents(third)
    forget_caches(third)
    assert contents(third) == before


def test_modules_of_a_sweeps_directory_are_not_imported(monkeypatch, tmp_path):
    code = tmp_path / "sweep" / "code" / "abc"
    code.mkdir(parents=True)
    monkeypatch.setenv("PYTHONPATH", "/mine")
    monkeypatch.chdir(tmp_path)
    assert python_environment(code)["PYTHONPATH"].split(os.pathsep) == [str(code), "/mine", str(tmp_path)]
    monkeypatch.chdir(tmp_path / "sweep")
    assert python_environment(code)["PYTHONPATH"].split(os.pathsep) == [str(code), "/mine"]
