"""Jobs that get nowhere before their time limit."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from vlmexp.files import read_json, write_json
from vlmexp.standstill import Standstill, refuse_standstill, shared_folders, where_it_stands


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that an evaluation and a training have been at."""
    directory = tmp_path / "my sweep" / "3"
    for file in ("checkpoints/checkpoint-5/model.safetensors", "train.log", "metrics.jsonl", "tensorboard/events.1"):
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).write_text("1\n")
    (directory / "evaluation").mkdir()
    for rank in (0, 1):
        answers = f'{{"fingerprint": "5c"}}\n{{"id": "{rank + 1}"}}\n'
        (directory / "evaluation" / f"base_predictions.partial-rank{rank}.jsonl").write_text(answers)
    (tmp_path / "data" / "easyvqa-1" / "computed").mkdir(parents=True)
    (tmp_path / "raw").mkdir()
    (tmp_path / "hub" / "models--me--vlm" / "blobs").mkdir(parents=True)
    return directory


def stands(run: Path, **stages: str) -> str:
    root = run.parent.parent
    folders = shared_folders(
        root / "data", {"root": str(root / "raw"), "download": True, "name": "no folder", "user": "~nobody/\0"}
    )
    return where_it_stands(run, {name: {"status": status} for name, status in stages.items()}, folders)


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("checkpoints/checkpoint-6/model.safetensors", "1\n"),
        ("checkpoints/checkpoint-5/optimizer.pt", "1\n"),
        ("evaluation/base_predictions.partial-rank1.jsonl", '{"fingerprint": "5c"}\n{"id": "2"}\n{"id": "3"}\n'),
        ("evaluation/base_evaluation.json", "{}"),
        ("deployment_model/model.safetensors", "1"),
        ("kept_by_a_stage_of_my_own.txt", "step 3"),
        ("../../data/vqav2-2.lock", ""),
        ("../../data/easyvqa-1/train.arrow", "12"),
        ("../../data/easyvqa-1/computed/train-lengths.npy", "12"),
        ("../../raw/train2014.zip.part", "12"),
        ("../../hub/models--me--vlm/blobs/0a1b.incomplete", "12"),
    ],
)
def test_progress_of_every_stage_counts(run, monkeypatch, file, text):
    monkeypatch.setenv("HF_HUB_CACHE", str(run.parent.parent / "hub"))
    before = stands(run)
    assert stands(run) == before
    (run / file).parent.mkdir(parents=True, exist_ok=True)
    (run / file).write_text(text)
    assert stands(run) != before


def test_what_every_attempt_writes_does_not(run):
    """Nor that answers of two ranks are gathered in one file, or what a kill leaves of one."""
    before = stands(run, train="running")
    for file in ("train.log", "train-rank1.log", "metrics.jsonl", "tensorboard/events.2", "run.json", ".hydra/x"):
        (run / file).parent.mkdir(exist_ok=True)
        (run / file).write_text("something more\n")
    own, other = (run / "evaluation" / f"base_predictions.partial-rank{rank}.jsonl" for rank in (0, 1))
    own.write_text('{"fingerprint": "5c"}\n{"id": "1"}\n{"id": "2"}\n{"id": "3", "pred')
    other.unlink()
    assert stands(run, train="preempted", download="lost") == before
    assert stands(run, train="running", download="done") != before


def attempts(*began: tuple[str, str, object]) -> list[dict]:
    """(job, where it stood, whether it came to its limit, perhaps at once) of each."""
    return [
        {"job_id": job, "began_at": at, "status": "preempted", "at_limit": bool(limit)}
        | ({"told_at_once": True} if limit == "at once" else {})
        for job, at, limit in began
    ]


@pytest.mark.parametrize(
    ("earlier", "is_refused"),
    [
        ([], False),
        ([("7", "here", True)], True),
        ([("7", "here", True), ("7", "here", False)], True),  # between them it was preempted, or killed
        ([("7", "here", False)], False),
        ([("7", "there", True)], False),
        ([("6", "here", True)], False),  # of a job with another limit
        ([("7", "here", "at once")], False),
        ([("7", "here", "at once"), ("7", "here", True)], True),
    ],
)
def test_the_second_limit_in_a_row_without_progress_is_the_last(run, earlier, is_refused):
    record = {"status": "preempted", "stages": {"download": {"status": "done"}, "train": {"status": "preempted"}}}
    write_json(run / "run.json", record | {"attempts": attempts(*earlier, ("7", "here", False))})
    if not is_refused:
        refuse_standstill(run, "here", "1-00:00:00")
        written = read_json(run / "run.json")
        assert (written["status"], written["attempts"][-1]["status"]) == ("preempted", "preempted")
        assert written["attempts"][-1]["at_limit"]
        refuse_standstill(run, "elsewhere", "1-00:00:00")
        return
    with pytest.raises(Standstill) as refused:
        refuse_standstill(run, "here", "1-00:00:00")
    times = sum(bool(limit) for _, _, limit in earlier) + 1
    assert str(refused.value) == (
        f"The job was stopped {times} times in a row, by its time limit of 1-00:00:00, in stage train before it had "
        "done anything that lasts: no step of a training, no answer, no stage. It is not started again. Raise "
        f"hydra.launcher.timeout_min: stage=resume 'sweep={run.parent}' resume.failed=true "
        "hydra.launcher.timeout_min=MINUTES"
    )
    written = read_json(run / "run.json")
    assert (written["status"], written["attempts"][-1]["status"]) == ("failed", "failed")
    assert written["error"] == f"Standstill: {refused.value}"


@pytest.mark.parametrize("times", [3, 4])
def test_a_job_that_is_always_told_at_once(run, times):
    record = {"status": "preempted", "stages": {}, "attempts": attempts(*[("7", "here", "at once")] * times)}
    write_json(run / "run.json", record)
    with pytest.raises(Standstill, match="stopped 4 times") if times == 4 else contextlib.nullcontext():
        refuse_standstill(run, "here", "1:00")


def test_a_run_that_was_done_stays_so(run):
    """While a stage of it is done again."""
    record = {"status": "done", "stages": {}, "attempts": attempts(("7", "here", True), ("7", "here", False))}
    write_json(run / "run.json", record)
    with pytest.raises(Standstill):
        refuse_standstill(run, "here", "1:00")
    assert read_json(run / "run.json")["status"] == "done"
