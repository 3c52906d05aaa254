from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from vlmexp.files import read_json

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
