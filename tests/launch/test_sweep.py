"""How points stand, from files alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from vlmexp.errors import UserError
from vlmexp.files import read_jsonl, write_json
from vlmexp.launch.commands import table
from vlmexp.launch.sweep import Sweep

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
    ],
)
def test_status_of_a_submitted_point(sweep, written, heartbeat, state, status):
    sweep.note_jobs({0: "7_0"})
    if written:
        write_json(sweep.directory / "0" / "run.json", {"status": written, "heartbeat": heartbeat})
    standings = sweep.standings({"7_0": state} if state else {})
    assert [standing.status for standing in standings] == [status, "missing"]


@pytest.mark.parametrize(("heartbeat", "status"), [(NOW, "running"), (LONG_AGO, "lost")])
def test_without_a_queue_the_last_sign_of_life_decides(sweep, heartbeat, status):
    sweep.note_jobs({0: "7_0", 1: "7_1"})
    write_json(sweep.directory / "0" / "run.json", {"status": "running", "heartbeat": heartbeat})
    assert [standing.status for standing in sweep.standings(None)] == [status, "pending"]


def test_a_job_whose_run_says_nothing_is_told_apart(sweep):
    sweep.note_jobs({0: "7_0", 1: "7_1"})
    for point, heartbeat in ((0, NOW), (1, LONG_AGO)):
        write_json(sweep.directory / str(point) / "run.json", {"status": "running", "heartbeat": heartbeat})
    standings = sweep.standings({"7_0": "RUNNING", "7_1": "RUNNING"})
    assert [standing.status for standing in standings] == ["running", "running"]
    assert standings[0].silent_s is None
    assert standings[1].silent_s > 86400
    assert ["silent" in cell for cell in table(sweep, standings).columns[1].cells] == [False, True]


def test_progress(sweep):
    directory = sweep.directory / "0"
    begun = (datetime.now(UTC) - timedelta(seconds=100)).isoformat()
    record = {"status": "running", "heartbeat": NOW, "progress": {"step": 10, "of": 40, "since": begun}}
    write_json(directory / "run.json", record)
    (directory / "metrics.jsonl").write_text('{"step": 20, "loss": 1.5}\n{"step": 20, "eval_loss": 2.0}\n')
    sweep.note_jobs({0: "7"})
    standing = sweep.standings({"7": "RUNNING"})[0]
    assert (standing.step, standing.steps, standing.loss) == (20, 40, 1.5)
    assert standing.remaining_s == pytest.approx(200, rel=0.05)


def test_numbers_stay_with_their_overrides(sweep):
    (sweep.directory / "2").mkdir()
    points = sweep.add([["peft.r=8", "seed=0"], ["peft.r=4", "seed=0"]])
    assert [(point.point, point.directory) for point in points] == [(3, "3"), (1, "1")]
    assert [row["point"] for row in read_jsonl(sweep.directory / "points.jsonl")] == [0, 1, 3]
    assert sweep.varied() == {0: "peft.r=2", 1: "peft.r=4", 3: "peft.r=8"}


def test_a_folder_that_is_no_sweep(sweep):
    with pytest.raises(UserError, match=rf"Below it are: {sweep.directory}\."):
        Sweep.named(str(sweep.directory.parent))
