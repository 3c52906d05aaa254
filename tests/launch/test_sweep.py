"""How points stand, from files alone."""

from __future__ import annotations

import io
import math
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from vlmexp.errors import UserError
from vlmexp.files import read_jsonl, write_json, write_text
from vlmexp.launch.checking import check_launcher
from vlmexp.launch.client import SweepFailed, refuse_failures
from vlmexp.launch.commands import resume, status, table
from vlmexp.launch.queues import SlurmQueue
from vlmexp.launch.sweep import Plan, Sweep
from vlmexp.runs import _lock

NOW = "2999-01-01T00:00:00+00:00"  # fresh, however long the tests take
LONG_AGO = "2000-01-01T00:00:00+00:00"


@pytest.fixture
def sweep(tmp_path) -> Sweep:
    made = Sweep(tmp_path / "sweeps" / "mine")
    made.add([["peft.r=2", "seed=0"], ["peft.r=4", "seed=0"]])
    return made


@pytest.mark.parametrize(
    ("written", "heartbeat", "state", "status"),
    [
        (None, NOW, None, "lost"),
        (None, NOW, "PENDING", "pending"),
        ("running", NOW, "RUNNING", "running"),
        ("running", NOW, None, "lost"),
        ("preempted", NOW, "PENDING", "pending"),
        ("preempted", NOW, None, "preempted"),
        ("failed", NOW, None, "failed"),
        ("failed", NOW, "PENDING", "pending"),
        ("done", NOW, None, "done"),
        ("done", NOW, "COMPLETING", "done"),
        (None, NOW, "PENDING launch failed requeued held", "pending"),
    ],
)
def test_status_of_a_submitted_point(sweep, written, heartbeat, state, status):
    sweep.note_jobs({0: "7_0"}, "slurm")
    if written:
        write_json(sweep.directory / "0" / "run.json", {"status": written, "heartbeat": heartbeat})
    standings = sweep.standings({"7_0": state} if state else {})
    assert [standing.status for standing in standings] == [status, "missing"]


@pytest.mark.parametrize(("heartbeat", "status"), [(NOW, "running"), (LONG_AGO, "lost")])
def test_without_a_queue_the_last_sign_of_life_decides(sweep, heartbeat, status):
    sweep.note_jobs({0: "7_0", 1: "7_1"}, "slurm")
    write_json(sweep.directory / "0" / "run.json", {"status": "running", "heartbeat": heartbeat})
    assert [standing.status for standing in sweep.standings(None)] == [status, "pending"]


def test_a_job_whose_run_says_nothing_is_told_apart(sweep):
    sweep.note_jobs({0: "7_0", 1: "7_1"}, "slurm")
    for point, heartbeat in ((0, NOW), (1, LONG_AGO)):
        write_json(sweep.directory / str(point) / "run.json", {"status": "running", "heartbeat": heartbeat})
    standings = sweep.standings({"7_0": "RUNNING", "7_1": "RUNNING"})
    assert [standing.status for standing in standings] == ["running", "running"]
    assert standings[0].silent_s is None
    assert standings[1].silent_s > 86400
    assert ["silent" in cell for cell in table(sweep, standings).columns[2].cells] == [False, True]


def test_the_table_tells_points_apart_at_80_columns_whatever_their_values_hold(tmp_path):
    sweep = Sweep(tmp_path / "[/] of mine")
    sweep.add([[f"peft.r={r}", "peft.train_parts=[language]", f"seed={r}"] for r in (2, 4)])
    sweep.add([["peft.r=8", "peft.train_parts=[language]", "collator.system_prompt='[/x] b'"]])
    console = Console(width=80, file=io.StringIO())
    console.print(table(sweep, sweep.standings({})))
    _, *rows = [line.split() for line in console.file.getvalue().splitlines() if "missing" in line]
    assert rows == [
        ["1", "r=4", "seed=4", "missing"],
        ["2", "r=8", "system_prompt='[/x]", "b'", "missing"],
        ["3", "missing"],
    ]
    sweep.add([["peft.r=8", "peft.train_parts=[projector]"]])
    console.print(table(sweep, sweep.standings({})))
    assert "train_parts=[language]" in console.file.getvalue()
    assert "train_parts=[projector]" in console.file.getvalue()
    assert "[/] of mine" in console.file.getvalue().replace("\n", "")


def test_a_point_that_somebody_continues_is_not_lost(sweep):
    sweep.note_jobs({0: "7"}, "slurm")
    write_json(sweep.directory / "0" / "run.json", {"status": "running", "heartbeat": NOW})
    assert sweep.standings({})[0].status == "lost"
    with _lock(sweep.directory / "0"):
        assert sweep.standings({})[0].status == "running"


@pytest.mark.parametrize(("ended", "words"), [(LONG_AGO, "no such module"), (NOW, "out of memory")])
def test_a_job_that_was_refused_says_why(sweep, ended, words):
    """Before its run was opened, whose record is that of an earlier job."""
    sweep.note_jobs({0: "7"}, "slurm")
    record = {"status": "failed", "error": "out of memory", "attempts": [{"ended": ended}]}
    write_json(sweep.directory / "0" / "run.json", record)
    write_text(sweep.directory / ".submitit" / "7" / "7_0_log.err", "no such module\n")
    assert sweep.last_words(sweep.standings({})[0])[0] == words


def test_a_job_that_wrote_nothing(sweep):
    sweep.plan = Plan("slurm", {}, "code", [])
    sweep.note_jobs({0: "7"}, "slurm")
    assert sweep.last_words(sweep.standings({})[0])[0] == (
        f"The job has written nothing, not even to {sweep.directory}/.submitit/7: do all nodes see this folder?"
    )


def test_a_login_node_has_both_programs(tmp_path, monkeypatch):
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no sbatch on this machine"):
        SlurmQueue({}, tmp_path / ".submitit").submit([], tmp_path)


def test_progress(sweep):
    directory = sweep.directory / "0"
    begun = (datetime.now(UTC) - timedelta(seconds=100)).isoformat()
    record = {"status": "running", "heartbeat": NOW, "progress": {"step": 10, "of": 40, "since": begun}}
    write_json(directory / "run.json", record)
    (directory / "metrics.jsonl").write_text('{"step": 20, "loss": 1.5}\n{"step": 20, "eval_loss": 2.0}\n')
    sweep.note_jobs({0: "7"}, "slurm")
    standing = sweep.standings({"7": "RUNNING"})[0]
    assert (standing.step, standing.steps, standing.loss) == (20, 40, 1.5)
    assert standing.remaining_s == pytest.approx(200, rel=0.05)
    (directory / "metrics.jsonl").write_text('{"step": 20, "loss": "nan"}\n')
    assert math.isnan(sweep.standings({"7": "RUNNING"})[0].loss)


def test_numbers_stay_with_their_overrides(sweep):
    (sweep.directory / "2").mkdir()
    points = sweep.add([["peft.r=8", "seed=0"], ["peft.r=4", "seed=0"]])
    assert [(point.point, point.directory) for point in points] == [(3, "3"), (1, "1")]
    assert [row["point"] for row in read_jsonl(sweep.directory / "points.jsonl")] == [0, 1, 3]
    assert sweep.varied() == {0: "peft.r=2", 1: "peft.r=4", 3: "peft.r=8"}


@pytest.fixture
def ended(sweep) -> Sweep:
    """One point is done and one has failed."""
    sweep.plan = Plan("foreground", {"wait": True, "cancel_on_interrupt": True}, "code", [])
    sweep.note_jobs({0: "999999990", 1: "999999991"}, "foreground")  # no processes
    for point, written in enumerate(["done", "failed"]):
        write_json(sweep.directory / str(point) / "run.json", {"status": written, "heartbeat": LONG_AGO})
    return sweep


def test_resume_says_how_to_run_what_failed(ended, capsys):
    resume(["stage=resume", f"sweep={ended.directory}"])
    assert capsys.readouterr().out == (
        f"{ended.directory}: 0 of 2 points to run (1 done, 1 failed)\n  resume.failed=true runs what failed again\n"
    )


def test_status_says_why_a_point_failed(ended, capsys):
    record = {"status": "failed", "heartbeat": LONG_AGO, "error": "Standstill: it got nowhere"}
    write_json(ended.directory / "1" / "run.json", record)
    status(["stage=status", f"sweep={ended.directory}"])
    assert capsys.readouterr().out.endswith("\npoint 1 failed: Standstill: it got nowhere\n")


def test_a_damaged_record_hides_no_other_point(ended, capsys):
    (ended.directory / "0" / "run.json").write_text('{"status": "do')
    for command in (status, resume):
        command([f"stage={command.__name__}", f"sweep={ended.directory}"])
        said = capsys.readouterr()
        assert "1 broken" in said.out
        assert "1 failed" in said.out
        assert said.err == (
            f"vlmexp: {ended.directory}/0/run.json is damaged: restore it, or remove the folder and resume.\n"
        )


def test_points_that_have_vanished_are_named(ended, capsys):
    first, _ = (ended.directory / "points.jsonl").read_text().splitlines()
    (ended.directory / "points.jsonl").write_text(f"{first}\n")
    status(["stage=status", f"sweep={ended.directory}"])
    assert "points.jsonl has lost points that were submitted (1)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("launch.json", "{", r"launch.json is damaged \(.*\): restore it"),
        ("points.jsonl", "", r"points.jsonl is damaged \(its last line has no end\): restore it"),
        ("points.jsonl", "{\n", r"points.jsonl is damaged \(.*\): restore it"),
        ("launch.json", None, "launch.json is not there.*: start the sweep's own command again with hydra.sweep.dir="),
    ],
)
def test_a_damaged_file_is_named(ended, name, text, part):
    (ended.directory / name).unlink()
    if text is not None:
        (ended.directory / name).write_text(text)
    with pytest.raises(UserError, match=part):
        status(["stage=status", f"sweep={ended.directory}"])


@pytest.mark.parametrize("value", ["0", "many"])
def test_a_launcher_without_room_is_refused(sweep, value):
    sweep.plan = Plan("local", {"array_parallelism": 2}, "code", [])
    with pytest.raises(UserError, match=f"hydra.launcher.array_parallelism={value} must be a whole number"):
        resume(["stage=resume", f"sweep={sweep.directory}", f"hydra.launcher.array_parallelism={value}"])


@pytest.mark.parametrize(
    ("option", "part"),
    [
        (
            "timeout_min=5",
            "timeout_min=5 is too short for hydra.launcher.signal_delay_s=300: .* to 7 or more",
        ),
        ("timeout_min=6", "timeout_min=6 is too short"),  # told 300 s, and perhaps 60 s more, before 360 s are over
        ("timeout_min=1", "timeout_min=1 is too short"),
        (
            "signal_delay_s=86340",
            "timeout_min=1440 is too short for .*signal_delay_s=86340: .* to 1441 or",
        ),
        ("signal_delay_s=-1", "signal_delay_s=-1 must be a whole number and at least 0"),
        ("signal_delay_s=null", "signal_delay_s=None must be a whole number"),
        ("timeout_min=null", "timeout_min=None must be a whole number and at least 1"),
        ("timeout_min=7.5", "timeout_min=7.5 must be a whole number"),
        ("timeout_min=true", "timeout_min=True must be a whole number"),
        ("max_num_timeout=-1", "max_num_timeout=-1 must be a whole number and at least 0"),
        ("additional_parameters={time: 2}", "additional_parameters.time=2 would overrule hydra.launcher.timeout_min"),
        ("additional_parameters={time_min: 2}", "additional_parameters.time_min=2 would overrule"),
        ("additional_parameters={signal: USR1@9}", "additional_parameters.signal=USR1@9 would .*set .*signal_delay_s"),
        ("additional_parameters={no-requeue: true}", "additional_parameters.no-requeue=True would overrule"),
    ],
)
def test_a_time_limit_that_leaves_no_time_is_refused(sweep, option, part):
    settings = {"timeout_min": 1440, "signal_delay_s": 300, "max_num_timeout": 100, "additional_parameters": {}}
    sweep.plan = Plan("slurm", settings, "code", [])
    with pytest.raises(UserError, match=rf"hydra\.launcher\.{part}"):
        resume(["stage=resume", f"sweep={sweep.directory}", f"hydra.launcher.{option}"])
    check_launcher(settings | {"timeout_min": 7})
    check_launcher(settings | {"timeout_min": 2, "signal_delay_s": 59})
    check_launcher({"timeout_min": 1, "cpus_per_task": None})  # of local processes


def test_what_to_type_is_for_a_shell(tmp_path):
    sweep = Sweep(tmp_path / "my own")
    sweep.add([["peft.r=2"]])
    with pytest.raises(SweepFailed, match=rf"stage=resume 'sweep={tmp_path}/my own'$"):
        refuse_failures(sweep, sweep.standings({}))


def test_a_stray_word_is_refused(sweep):
    with pytest.raises(UserError, match="'two' is no option"):
        status(["stage=status", f"sweep={sweep.directory}", "two"])


def test_a_folder_that_is_no_sweep(sweep):
    with pytest.raises(UserError, match=rf"Below it are: {sweep.directory}\."):
        Sweep.named(str(sweep.directory.parent))
