from __future__ import annotations

import fcntl
import os
import socket
import subprocess
from datetime import UTC, datetime, timedelta

import pytest

from tests.comparison.synthetic import make_run
from vlmexp.comparison.reading import expand, find_run, find_runs, leaves, read_run, seconds, short_names
from vlmexp.comparison.rows import make_rows, mark_differences
from vlmexp.errors import UserError
from vlmexp.files import read_json, write_json


def test_every_kind_of_run_is_found(zoo):
    runs = find_runs([zoo], lost_after_s=300)
    found = {str(run.directory.relative_to(zoo)).removeprefix("multirun/2026-01-02/"): run.status for run in runs}
    sweep = "10-00-00-000000"
    assert found == {
        f"{sweep}/0": "done", f"{sweep}/1": "done", f"{sweep}/2": "done", f"{sweep}/3": "failed",
        f"{sweep}/4": "pending", f"{sweep}/5": "pending", "outputs/alive": "running", "outputs/broken": "broken",
        "outputs/lost": "lost", "outputs/older": "done", "outputs/other": "done", "outputs/preempted": "preempted",
    }  # fmt: skip


def test_a_pending_point_knows_its_options(zoo):
    pending = [run for run in find_runs([zoo / "multirun"], 300) if run.status == "pending"]
    assert [dict(run.options) for run in pending] == [{"peft.r": 16, "seed": 0}, {"peft.r": 16, "seed": 1}]


def test_a_silent_run_is_lost_after_the_given_time(zoo):
    assert read_run(zoo / "outputs" / "lost", lost_after_s=300).status == "lost"
    assert read_run(zoo / "outputs" / "lost", lost_after_s=1e12).status == "running"


@pytest.mark.parametrize(
    ("host", "pid", "silent_s", "status"),
    [
        ("here", "dead", 1, "lost"),
        ("here", "alive", 100, "running"),
        ("here", "alive", 400, "lost"),
        ("elsewhere", "dead", 100, "running"),
        ("here", "unknown", 100, "running"),
    ],
)
def test_a_run_whose_process_is_gone_is_lost_at_once(host, pid, silent_s, status, tmp_path):
    with subprocess.Popen(["true"]) as ended:
        pass
    attempt = {
        "started": "2026-01-01T00:00:00+00:00",
        "host": socket.gethostname() if host == "here" else "elsewhere",
        "pid": {"dead": ended.pid, "alive": os.getpid(), "unknown": None}[pid],
    }
    heartbeat = (datetime.now(UTC) - timedelta(seconds=silent_s)).isoformat()
    run = make_run(tmp_path / "run", {}, [], status="running", heartbeat=heartbeat, attempts=[attempt])
    assert read_run(run, lost_after_s=300).status == status
    with (run / ".lock").open("w") as held:  # as by a process that cannot be seen from here
        fcntl.flock(held, fcntl.LOCK_EX)
        assert read_run(run, lost_after_s=300).status == ("lost" if silent_s > 300 else "running")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.resolved.yaml", "a: [1"),
        ("evaluation/finetuned_vlm_model_evaluation.json", "{"),
        ("metrics.jsonl", "{]\n"),
    ],
)
def test_a_broken_file_is_named_and_the_rest_is_read(name, content, tmp_path):
    run = make_run(tmp_path / "run")
    (run / name).write_text(content)
    read = read_run(run, 300)
    assert read.status == "done"
    assert read.error.startswith(f"{name.rpartition('/')[2]} cannot be read")


@pytest.mark.parametrize(
    ("name", "values", "damaged"),
    [
        ("run.json", {"attempts": 3, "data": [1], "overrides": "peft.r=8"}, "attempts, overrides, data"),
        ("evaluation/finetuned_vlm_model_evaluation.json", {"n": "many", "by": 3, "split": {}}, "n, by, split"),
    ],
)
def test_values_of_another_kind_are_left_out_and_named(name, values, damaged, tmp_path):
    run = make_run(tmp_path / "run")
    write_json(run / name, read_json(run / name) | values)
    read = read_run(run, 300)
    assert read.error == f"{name.rpartition('/')[2]} is damaged at: {damaged}"
    rows = make_rows([read], "finetuned")
    mark_differences(rows, "finetuned")
    assert rows[0].scores["vqa_accuracy"].value == 0.5


def test_broken_points_are_a_row(tmp_path):
    (tmp_path / "points.jsonl").write_text('{"point": 0}\n')
    (run,) = find_runs([tmp_path], 300)
    assert (run.status, run.directory.name) == ("broken", "points.jsonl")


def test_a_metrics_file_that_grows_is_read_up_to_its_last_line(tmp_path):
    run = make_run(tmp_path / "run", losses=[2.0])
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20, "lo')
    assert [row["step"] for row in read_run(run, 300).metrics] == [10, 10]


def test_the_time_of_a_run_is_that_of_its_attempts(tmp_path):
    attempts = [
        {"started": "2026-01-01T00:00:00+00:00", "ended": "2026-01-01T00:01:00+00:00"},
        {"started": "2026-01-02T00:00:00+00:00"},  # killed without a word
        {"started": "2026-01-03T00:00:00+00:00"},
    ]
    run = make_run(tmp_path / "run", attempts=attempts, heartbeat="2026-01-03T00:00:30+00:00")
    assert seconds(read_run(run, 300)) == 90.0


def test_names_are_the_shortest_ends(tmp_path):
    paths = [tmp_path / "a" / "0", tmp_path / "a" / "1", tmp_path / "b" / "1"]
    assert short_names(paths) == ["0", "a/1", "b/1"]


def test_a_run_is_found_by_path_id_or_end(tmp_path):
    for name in ("a/1", "b/1", "b/2"):
        make_run(tmp_path / name)
    runs = find_runs([tmp_path], 300)
    for text in (str(tmp_path / "b" / "2"), "b/2", "2", "2-abcdef"):
        assert find_run(text, runs, 300, "compare.diff").directory == tmp_path / "b" / "2"
    with pytest.raises(UserError, match=r"compare\.diff: '1' is the end of 2 runs"):
        find_run("1", runs, 300, "compare.diff")
    with pytest.raises(UserError, match=r"no run 'b/3'; did you mean 'b/1'\? There are: a/1, b/1, 2"):
        find_run("b/3", runs, 300, "compare.diff")


def test_folders_are_given_by_name_or_pattern(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    assert expand([], [tmp_path / "one", tmp_path / "none"]) == [tmp_path / "one"]
    assert expand([f"{tmp_path}/*"], []) == [tmp_path / "one", tmp_path / "two"]
    with pytest.raises(UserError, match="no directory"):
        expand([str(tmp_path / "three*")], [])


def test_leaves_are_dotted():
    assert leaves({"a": {"b": 1, "c": [1, "x"], "d": {}}, "e": None}) == {
        "a.b": 1,
        "a.c": '[1, "x"]',
        "a.d": "{}",
        "e": None,
    }
    with pytest.raises(ValueError, match="no options"):
        leaves(["a"])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", "[" * 200_000),
        ("config.resolved.yaml", "e: [2026-01-01]"),
        ("config.resolved.yaml", "a: &a\n  b: *a"),
    ],
)
def test_a_run_that_cannot_be_read_is_a_row(tmp_path, file, content):
    make_run(tmp_path / "fine")
    bad = make_run(tmp_path / "bad")
    (bad / file).write_text(content.replace("HOST", socket.gethostname()))
    runs = {run.directory.name: run for run in find_runs([tmp_path], 300)}
    assert {name: run.status for name, run in runs.items()} == {"fine": "done", "bad": "broken"}
    assert "cannot be read: " in runs["bad"].error


@pytest.mark.parametrize(
    ("metric", "damage", "expected"),
    [
        ("vqa_accuracy", {"n": True}, (0.5, None, 0.0, 1.0)),
        ("vqa_accuracy", {"n": 10**400}, (0.5, None, 0.0, 1.0)),
        ("vqa_accuracy", {"intervals": {"vqa_accuracy": [90.0, 10.0]}}, (0.5, 2, None, None)),
        ("vqa_accuracy", {"intervals": {"vqa_accuracy": [0.9, 0.1]}}, (0.5, 2, None, None)),
        ("vqa_accuracy", {"metrics": {"vqa_accuracy": 1e308}}, None),
        ("cider", {"metrics": {"cider": 10.5}}, None),
        ("cider", {"metrics": {"cider": 9.5}}, (9.5, 2, None, None)),
        ("mine", {"metrics": {"mine": 10**400}}, None),
        ("mine", {"metrics": {"mine": 35.0}}, (35.0, 2, None, None)),
    ],
)
def test_damaged_numbers_are_missing(tmp_path, metric, damage, expected):
    path = make_run(tmp_path / "run") / "evaluation" / "finetuned_vlm_model_evaluation.json"
    write_json(path, read_json(path) | damage)
    (row,) = make_rows(find_runs([tmp_path], 300), "finetuned")
    found = row.scores.get(metric)
    assert (found and (found.value, found.n, found.low, found.high)) == expected
