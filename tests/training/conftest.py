from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run

SMALL = [
    "stage=train", "dataset=files", "dataset.splits.validation=null", "dataset.validation_fraction=0.2", "threads=1",
    "dataset.columns={image: picture, question: query, answer: response}", "peft.r=4", "peft.lora_dropout=0.1",
    "train.per_device_train_batch_size=4", "train.per_device_eval_batch_size=4", "train.num_train_epochs=2",
    "train.logging_steps=1", "train.eval_steps=3", "train.save_steps=3", "train.save_total_limit=3",
]  # fmt: skip


@pytest.fixture
def small(compose, vqa_files):
    def make(*overrides: str):
        files = [f"+dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
        return compose(*SMALL, *(text.replace("+", "") for text in files), *overrides)

    return make


@pytest.fixture
def cut_after(tmp_path):
    """Copy a finished run to what a kill after a step would have left: no later checkpoint, no export, later lines."""

    def cut(whole: Path, step: int) -> Path:
        directory = tmp_path / "cut"
        shutil.copytree(whole, directory)
        for path in directory.glob("checkpoints/checkpoint-*"):
            if int(path.name.rpartition("-")[2]) > step:
                shutil.rmtree(path)
        shutil.rmtree(directory / "model")
        shutil.rmtree(directory / "deployment_model")
        record = read_json(directory / "run.json")
        record["stages"]["train"]["status"] = record["status"] = "running"
        (directory / "run.json").write_text(json.dumps(record))
        return directory

    return cut


@pytest.fixture
def trained(small, tmp_path, monkeypatch):
    """Train in this process, without an export: the Trainer, what was logged, and the weights before and after."""
    from vlmexp.training import stage

    held: dict = {}

    def build(*args, build_trainer=stage.build_trainer):
        held["trainer"] = build_trainer(*args)
        held["before"] = weights(held["trainer"].model)
        return held["trainer"]

    monkeypatch.setattr(stage, "build_trainer", build)
    count = iter(range(100))

    def train(*options: str, extra: list[str] = []):  # noqa: B006
        quick = ["peft.lora_dropout=0", "train.memory_preflight=false", "train.gradient_audit=off"]
        directory = tmp_path / f"run-{next(count)}"
        config = small(*quick, *extra, *(f"train.{option}" for option in options))
        with Run.open(directory, config, []) as run:
            stage.train_model(config, run)
        return held["trainer"], read_jsonl(directory / "metrics.jsonl"), held["before"], weights(held["trainer"].model)

    return train


def weights(model) -> dict:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def logged(lines: list[dict], name: str = "loss") -> list[tuple[int, float]]:
    return [(line["step"], line[name]) for line in lines if name in line]


@pytest.fixture
def uneven(vqa_files) -> None:
    """Let the answers of the small data set have one word to five."""
    path = vqa_files / "train.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for index, row in enumerate(rows):
        row["response"] = " ".join([row["response"]] * (index * 7 % 5 + 1))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
