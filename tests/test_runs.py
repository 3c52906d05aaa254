from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import signal
import subprocess

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlmexp.errors import UserError
from vlmexp.files import new_folder, read_json, read_jsonl, write_json, write_jsonl
from vlmexp.interruption import Preempted
from vlmexp.launch.snapshot import take_snapshot
from vlmexp.provenance import GIT_STATE, git_state, redacted
from vlmexp.runs import Run, config_key, differences, finished_runs, now, require_run


def test_status_goes_from_running_to_done(compose, tmp_path):
    with Run.open(tmp_path / "run", compose(), ["seed=0"]) as run:
        assert read_json(run.path("run.json"))["status"] == "running"
        with run.stage("train") as result:
            result["steps"] = 3
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "done"
    assert record["stages"]["train"]["steps"] == 3
    assert record["stages"]["train"]["seconds"] >= 0
    assert record["overrides"] == ["seed=0"]
    assert record["packages"]["torch"]
    assert [attempt["status"] for attempt in record["attempts"]] == ["done"]
    assert (tmp_path / "run" / "config.resolved.yaml").exists()


def test_a_failure_is_recorded_with_its_traceback(compose, tmp_path):
    def fail():
        with Run.open(tmp_path, compose(), []) as run, run.stage("train"):
            raise RuntimeError("no luck")

    with pytest.raises(RuntimeError):
        fail()
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: no luck")
    assert record["stages"]["train"]["status"] == "failed"
    assert record["stages"]["train"]["seconds"] >= 0
    assert "in fail" in (tmp_path / "train.log").read_text()
    with Run.open(tmp_path, compose(), []):
        pass
    record = read_json(tmp_path / "run.json")
    assert "error" not in record
    assert [attempt["status"] for attempt in record["attempts"]] == ["failed", "done"]


def test_a_finished_run_keeps_its_outcome_when_a_stage_is_done_again(compose, tmp_path):
    with Run.open(tmp_path, compose("stage=train"), ["stage=train"]) as run:
        run.conclude({"loss": 1.0})
    with Run.open(tmp_path, compose("stage=download"), ["stage=download"]) as run:
        run.conclude({"counts": 3})
    with pytest.raises(RuntimeError), Run.open(tmp_path, compose("stage=download"), []):
        raise RuntimeError("no luck")
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["stage"], record["result"]) == ("done", "train", {"loss": 1.0})
    assert record["overrides"] == ["stage=train"]
    assert [(a["stage"], a["status"]) for a in record["attempts"]] == [
        ("train", "done"), ("download", "done"), ("download", "failed"),
    ]  # fmt: skip


def test_a_failed_run_is_not_done_because_a_smaller_stage_is(compose, tmp_path):
    with pytest.raises(RuntimeError), Run.open(tmp_path, compose("stage=train"), []):
        raise RuntimeError("no luck")
    with Run.open(tmp_path, compose("stage=download"), []):
        pass
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["error"]) == ("failed", "RuntimeError: no luck")


def test_a_run_that_is_used_further_has_the_further_outcome(compose, tmp_path):
    with Run.open(tmp_path, compose("stage=download"), ["stage=download"]):
        pass
    with pytest.raises(RuntimeError), Run.open(tmp_path, compose("stage=train"), ["stage=train"]):
        raise RuntimeError("no luck")
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["stage"], record["overrides"]) == ("failed", "train", ["stage=train"])


def test_another_config_is_refused_and_nothing_is_overwritten(compose, tmp_path):
    with Run.open(tmp_path, compose(), []):
        pass
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    with pytest.raises(UserError, match=r"peft.r is 16 there and 3 here"), Run.open(tmp_path, compose("peft.r=3"), []):
        pass
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("override", ["stage=train", "paths.outputs=elsewhere", "tracking=tensorboard", "threads=2"])
def test_what_does_not_change_a_result_is_not_in_the_key(override, compose):
    assert key_of(compose(override)) == key_of(compose())


@pytest.mark.parametrize("override", ["seed=1", "peft.r=3", "train.max_steps=3", "dataset.split_seed=1", "model.id=x"])
def test_what_changes_a_result_is_in_the_key(override, compose):
    assert key_of(compose(override)) != key_of(compose())


def key_of(config) -> str:
    import dataclasses

    return config_key(dataclasses.asdict(config))


def hold(directory, config, ready, done):
    with Run.open(directory, config, []):
        ready.set()
        done.wait(30)


def test_two_processes_cannot_work_in_one_directory(compose, tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, compose(), ready, done))
    other.start()
    assert ready.wait(60)
    try:
        with pytest.raises(UserError, match="Another process is working"), Run.open(tmp_path, compose(), []):
            pass
    finally:
        done.set()
        other.join()


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (None, "stage=pipeline returned None: a stage returns a dictionary"),
        ({"metric": "abc"}, "stage=pipeline returned metric='abc', which is no number"),
        ({"model": object()}, "run.json cannot hold: object cannot be written as JSON"),
        ({"metric": torch.ones(2)}, "run.json cannot hold: a Tensor with 2 elements"),
    ],
    ids=["nothing", "text", "object", "tensor"],
)
def test_a_result_that_is_none_fails_the_run(result, said, compose, tmp_path):
    with pytest.raises(UserError, match=said), Run.open(tmp_path, compose(), []) as run:
        run.conclude(result)
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["result"]) == ("failed", {})
    assert said in record["error"]


def test_a_result_is_kept_as_plain_numbers(compose, tmp_path):
    with Run.open(tmp_path, compose(), []) as run:
        run.conclude({"metric": torch.tensor(0.5), "steps": np.int64(3)})
    assert read_json(tmp_path / "run.json")["result"] == {"metric": 0.5, "steps": 3}


def test_a_fallback_is_noted_once(compose, tmp_path):
    with Run.open(tmp_path, compose(), []) as run:
        run.note_fallback("float32 instead of bf16")
        run.note_fallback("float32 instead of bf16")
    assert read_json(tmp_path / "run.json")["fallbacks"] == ["float32 instead of bf16"]


def test_metrics_of_repeated_steps_are_forgotten(compose, tmp_path):
    with Run.open(tmp_path, compose(), []) as run:
        for step in (1, 2, 3):
            run.log_metrics({"step": step})
        with run.path("metrics.jsonl").open("a") as file:
            file.write('{"step": 4, "lo')  # killed while it wrote
        run.forget_metrics_after(2)
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize(
    ("error", "status"), [(Preempted(signal.SIGTERM), "preempted"), (KeyboardInterrupt(), "preempted")]
)
def test_a_stage_that_is_stopped_says_so(error, status, compose, tmp_path):
    with pytest.raises(type(error)), Run.open(tmp_path, compose(), []) as run, run.stage("train"):
        raise error
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["stages"]["train"]["status"]) == (status, status)
    assert run.stage_result("train") is None


def test_a_stage_whose_error_is_caught_has_failed_in_a_run_that_is_done(compose, tmp_path):
    with Run.open(tmp_path, compose(), []) as run, contextlib.suppress(RuntimeError), run.stage("probe"):
        raise RuntimeError("no luck")
    record = read_json(tmp_path / "run.json")
    assert (record["status"], record["stages"]["probe"]["status"]) == ("done", "failed")


def test_a_stage_that_was_killed_does_not_go_on_running_in_the_next_attempt(compose, tmp_path):
    with Run.open(tmp_path, compose(), []) as run:
        killed = run.record | {"status": "running", "stages": {"train": {"status": "running", "started": now()}}}
    write_json(tmp_path / "run.json", killed)
    with Run.open(tmp_path, compose("stage=download"), []):
        assert read_json(tmp_path / "run.json")["stages"]["train"]["status"] == "lost"


def test_files_of_json_hold_no_number_that_json_lacks(compose, tmp_path):
    row = {"step": 1, "loss": math.nan, "all": [math.inf, {"x": -math.inf}, np.float32("nan")], "lr": 0.5}
    plain = {"step": 1, "loss": None, "all": [None, {"x": None}, None], "lr": 0.5}
    with Run.open(tmp_path, compose(), []) as run:
        run.conclude({"metric": math.nan, "loss": torch.tensor(math.inf)})
        run.update(note=row)
    write_jsonl(tmp_path / "rows.jsonl", [row])
    for name in ("rows.jsonl", "run.json"):
        text = (tmp_path / name).read_text()
        values = [json.loads(text, parse_constant=pytest.fail)]
        assert values[0].get("note", values[0]) == plain
    assert read_json(tmp_path / "run.json")["result"] == {"metric": None, "loss": None}


def test_files_of_before_may_hold_numbers_that_json_lacks(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "loss": -Infinity}\n')
    assert read_jsonl(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": None}, {"step": 2, "loss": None}]


def test_files_of_a_folder_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        with new_folder(tmp_path / "model") as folder:
            save_file({"a": torch.zeros(3)}, folder / "model.safetensors")  # leaves it to its owner alone
            (folder / "inside").mkdir()
            save_file({"a": torch.zeros(3)}, folder / "inside" / "model.safetensors")
            (folder / "config.json").write_text("{}")
        write_json(tmp_path / "run.json", {})
    finally:
        os.umask(before)
    files = [*(tmp_path / "model").rglob("*.*"), tmp_path / "run.json"]
    assert {path.name: oct(path.stat().st_mode & 0o777) for path in files} == dict.fromkeys(
        ["model.safetensors", "config.json", "run.json"], "0o640"
    )


def test_the_git_state_goes_with_a_copy_of_the_code(tmp_path):
    checkout = tmp_path / "checkout"
    (checkout / "vlmexp").mkdir(parents=True)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert git_state(checkout) is None
    git("init")
    (checkout / "vlmexp" / "a.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-m", "first")
    clean = git_state(checkout)
    assert clean == {"sha": git("rev-parse", "HEAD").strip(), "diff": ""}
    (checkout / "vlmexp" / "a.py").write_text("x = 2\n")
    state = git_state(checkout)
    assert state["sha"] == clean["sha"]
    assert "-x = 1\n+x = 2\n" in state["diff"]
    (tmp_path / "copy").mkdir()
    write_json(tmp_path / "copy" / GIT_STATE, state)
    assert git_state(tmp_path / "copy") == state


def test_a_snapshot_is_another_for_another_state_of_the_checkout(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    taken = []
    for sha in ("one", "two", "two"):
        monkeypatch.setattr("vlmexp.launch.snapshot.git_state", lambda sha=sha: {"sha": sha, "diff": ""})
        taken.append(take_snapshot(tmp_path / "code", tmp_path / "conf"))
    assert [read_json(folder / GIT_STATE)["sha"] for folder in taken] == ["one", "two", "two"]
    assert len(set(taken)) == 2


def test_metrics_are_json_whatever_they_are(compose, tmp_path):
    """JSON has no NaN; an older run's lines that have some become JSON as well."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": NaN}\n')
    with Run.open(tmp_path, compose(), []) as run:
        run.forget_metrics_after(2)
        run.log_metrics({"step": 3, "loss": math.inf, "grad_norm": -math.inf, "eval_loss": math.nan, "rate": 1.5})
    assert (tmp_path / "metrics.jsonl").read_text() == (
        '{"step": 1, "loss": null}\n{"step": 3, "loss": "inf", "grad_norm": "-inf", "eval_loss": "nan", "rate": 1.5}\n'
    )


def test_differences_are_named_by_option():
    old, new = {"a": {"b": 1, "c": 2}, "stage": "x"}, {"a": {"b": 1, "c": 3, "d": 4}, "stage": "y"}
    assert differences(old, new) == {"a.c": (2, 3), "a.d": (None, 4)}


def test_runs_are_found_newest_first(compose, tmp_path):
    for name in ("one", "two"):
        with Run.open(tmp_path / name, compose(), []):
            pass
    assert [directory.name for directory, _ in finished_runs(tmp_path)] == ["two", "one"]
    with pytest.raises(UserError, match="The newest runs are"):
        require_run(tmp_path / "three", tmp_path)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json") == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    def half():
        with new_folder(tmp_path / "model") as folder:
            (folder / "part").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        half()
    assert list(tmp_path.iterdir()) == []


def test_secrets_are_taken_out_of_text(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefghijkl")
    assert redacted("push --token hf_abcdefghijkl") == "push --token <HF_TOKEN>"


def test_an_unwritable_directory_is_one_sentence(compose, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"), Run.open(tmp_path / "file" / "run", compose(), []):
        pass
