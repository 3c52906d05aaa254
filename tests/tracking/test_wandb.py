"""Weights & Biases offline, for real: what it wrote is read back from its file."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
from pathlib import Path

import pytest
import wandb

from tests.slurm.cluster import wait_until
from tests.tracking.offline import offline_runs
from vlmexp.config import Config
from vlmexp.errors import UserError
from vlmexp.evaluation.stage import eval_finetuned
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.tracking.opening import identity_of, shown_config, tracked
from vlmexp.training.stage import train_model

TRACKED = ["tracking=wandb", "train.max_steps=2", "train.eval_steps=2", "tracking.predictions=3"]


def train_and_evaluate(config: Config, directory: Path) -> None:
    """Two attempts in the same run directory, as a resumed pipeline makes them."""
    with Run.open(directory, config, []) as run:
        train_model(config, run)
    with Run.open(directory, dataclasses.replace(config, stage="eval_finetuned"), []) as run:
        eval_finetuned(config, run)


def test_a_point_of_a_sweep_with_its_evaluations(small, tmp_path):
    point = tmp_path / "ranks" / "7"
    point.mkdir(parents=True)
    (point.parent / "multirun.yaml").touch()  # as Hydra marks a sweep
    config = small(*TRACKED)
    train_and_evaluate(config, point)

    record = read_json(point / "run.json")
    first, second = offline_runs(point)
    link = record["tracking"]
    assert (link["tool"], link["name"], link["group"], link["job_type"]) == ("wandb", "ranks/7", "ranks", "train")
    assert link["directories"] == [f"wandb/{found.directory.name}" for found in (first, second)]
    for found in (first, second):
        assert found.run.run_id == link["id"] == record["id"]
        assert (found.run.run_group, found.run.display_name, found.run.job_type) == ("ranks", "ranks/7", "train")
        assert found.config["run_directory"] == str(point)
        assert found.config["peft"]["r"] == 4
        assert found.exit_code == 0

    lines = read_jsonl(point / "metrics.jsonl")
    assert [line["train/global_step"] for line in first.history] == [line["step"] for line in lines] == [1, 2, 2]
    assert [line["train/loss"] for line in first.history[:2]] == [line["loss"] for line in lines[:2]]
    assert first.history[2]["eval/loss"] == lines[2]["eval_loss"]
    assert first.history[0].keys() >= {"train/tokens_per_s", "train/data_wait", "train/grad_norm"}

    result = read_json(point / "evaluation" / "finetuned_vlm_model_evaluation.json")
    assert second.summary["finetuned/cut"] == result["cut"]
    for name, value in result["metrics"].items():
        if value is None:  # BLEU of single words
            assert f"finetuned/{name}" not in second.summary
            continue
        assert second.summary[f"finetuned/{name}"] == value
        assert second.summary[f"finetuned_blind/{name}"] == result["blind"]["metrics"][name]
    assert second.summary["finetuned/n"] == result["n"] == 16


def test_the_table_of_predictions_shows_images(small, tmp_path):
    config = small(*TRACKED)
    train_and_evaluate(config, tmp_path / "run")
    found = offline_runs(tmp_path / "run")[-1]
    table = found.table("finetuned/predictions")
    predictions = {row["id"]: row for row in read_jsonl(next(tmp_path.glob("run/evaluation/*_predictions.jsonl")))}
    assert table["columns"][:5] == ["image", "id", "question", "answers", "prediction"]
    assert len(table["data"]) == 3
    for row in table["data"]:
        cells = dict(zip(table["columns"], row, strict=True))
        wanted = predictions[cells["id"]]
        assert (cells["question"], cells["prediction"]) == (wanted["question"], wanted["prediction"])
        assert cells["answers"] == ", ".join(wanted["answers"])
        assert cells["vqa_accuracy"] == wanted["scores"]["vqa_accuracy"]
    (artifact,) = found.artifacts
    images = [entry for entry in artifact.manifest.contents if entry.path.startswith("media/images/")]
    assert images
    for entry in images:  # the run directory holds all that a later upload needs
        assert Path(entry.local_path).is_relative_to(tmp_path / "run")
        assert Path(entry.local_path).read_bytes().startswith(b"\x89PNG")


def test_an_evaluation_of_its_own_goes_to_the_run_that_trained(small, tmp_path):
    config = small(*TRACKED, "tracking.predictions=0", "evaluation.blind=none")
    with Run.open(tmp_path / "trained", config, []) as run:
        train_model(config, run)
    evaluation = dataclasses.replace(config, stage="eval_finetuned", run=str(tmp_path / "trained"))
    with Run.open(tmp_path / "evaluated", evaluation, []) as run:
        eval_finetuned(evaluation, run)
    trained, evaluated = (read_json(tmp_path / name / "run.json") for name in ("trained", "evaluated"))
    assert evaluated["id"] != trained["id"]
    (found,) = offline_runs(tmp_path / "evaluated")
    assert found.run.run_id == evaluated["tracking"]["id"] == trained["id"]
    assert found.run.job_type == "train"
    assert found.config["evaluated_in"] == str(tmp_path / "evaluated")
    assert "finetuned/vqa_accuracy" in found.summary
    assert not list(found.directory.glob("files/media/table/*"))


def test_a_server_that_cannot_be_reached_costs_no_run(small, tmp_path, monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # nobody listens
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        monkeypatch.setenv("WANDB_API_KEY", "0123456789" * 4)
        monkeypatch.setenv("WANDB_INIT_TIMEOUT", "1")
        wandb.teardown()  # it reads its environment once a process
        config = small(*TRACKED, "tracking.mode=online")
        with Run.open(tmp_path / "run", config, []) as run, tracked(config, run):
            run.tracker.log({"step": 1, "loss": 0.5})
        wandb.teardown()
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "done"
    (note,) = record["fallbacks"]
    assert note.startswith("W&B cannot be reached (")
    assert "0123456789" not in note
    (found,) = offline_runs(tmp_path / "run")
    assert found.history[0]["train/loss"] == 0.5


def test_a_client_that_dies_costs_no_run(small, tmp_path):
    config = small(*TRACKED)
    with Run.open(tmp_path / "run", config, []) as run, tracked(config, run):
        for child in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split():
            if Path(f"/proc/{child}/comm").read_text().startswith("wandb"):
                os.kill(int(child), signal.SIGKILL)
        for step in range(1, 2_000):  # until the broken connection shows
            run.tracker.log({"step": step, "loss": 0.5})
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "done"
    (note,) = record["fallbacks"]
    assert note.startswith("tracking.report_to=wandb failed (")
    with Run.open(tmp_path / "next", config, []) as run, tracked(config, run):  # in the same process
        run.tracker.log({"step": 1, "loss": 0.25})
    wait_until(lambda: offline_runs(tmp_path / "next")[0].history, "the client's process has written its file")
    assert offline_runs(tmp_path / "next")[0].history[0]["train/loss"] == 0.25
    assert run.record["fallbacks"] == []
    assert "WANDB_DATA_DIR" not in os.environ


def test_a_failed_run_is_a_failed_run_there_too(small, tmp_path):
    config = small(*TRACKED)
    with pytest.raises(ZeroDivisionError), Run.open(tmp_path / "run", config, []) as run, tracked(config, run):
        _ = 1 / 0
    (found,) = offline_runs(tmp_path / "run")
    assert found.exit_code == 1


def test_online_without_an_account_is_refused(small, monkeypatch, tmp_path):
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(UserError, match="set WANDB_API_KEY"):
        small("tracking=wandb", "tracking.mode=online")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")  # as `wandb login` does
    assert small("tracking=wandb", "tracking.mode=online").tracking.mode == "online"


def test_no_secret_is_in_the_configuration(small, monkeypatch, tmp_path):
    monkeypatch.setenv("HUB_TOKEN", "hf_abcdefgh")
    config = small("dataset.metadata=['https://user:hf_abcdefgh@host']")
    with Run.open(tmp_path / "run", config, []) as run:
        assert shown_config(config, run)["dataset"]["metadata"] == ["https://user:<HUB_TOKEN>@host"]


@pytest.mark.parametrize(
    ("directory", "name", "expected", "group"),
    [
        ("alone", None, "the run's id", None),
        ("alone", "mine", "mine", None),
        ("sweep/12", None, "sweep/12", "sweep"),
        ("sweep/12", "mine", "mine/12", "sweep"),
    ],
)
def test_names(small, tmp_path, directory, name, expected, group):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "points.jsonl").touch()
    config = small(f"tracking.name={name or 'null'}")
    with Run.open(tmp_path / directory, config, []) as run:
        identity = identity_of(config, run)
    assert identity.name.replace(run.record["id"], "the run's id") == expected
    assert identity.group == group


def test_an_id_that_the_server_takes(small, tmp_path):
    config = small()
    with Run.open(tmp_path / f"a b:{'c' * 80}", config, []) as run:
        own = identity_of(config, run).id
        assert own == ("c" * 80 + run.record["id"][-7:])[-64:]
