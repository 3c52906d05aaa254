"""Everything here needs a GPU. `VLMEXP_GPU_TESTS=cpu` runs what of it a CPU can: to try the tests themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.models.families import write_checkpoint
from vlmexp.config import Collator
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.training.stage import train

ON_CPU = os.environ.get("VLMEXP_GPU_TESTS") == "cpu"
HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available() or ON_CPU:
        return
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="torch sees no GPU here"))


@dataclass(frozen=True)
class Steps:
    """What three optimizer steps, each over all rows, came to."""

    record: dict[str, Any]
    losses: list[float]
    grad_norms: list[float]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory) -> Callable[[str], Path]:
    """Small checkpoints of the families, each made once."""
    made: dict[str, Path] = {}

    def of(family: str) -> Path:
        if family not in made:
            made[family] = write_checkpoint(family, tmp_path_factory.mktemp(family))
        return made[family]

    return of


@pytest.fixture
def steps(compose, vqa_files, checkpoints, tmp_path):
    """Train a family for three steps that each see all 48 rows, so that their order does not matter."""

    def run(family: str, *options: str) -> Steps:
        files = [f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
        config = compose(
            "stage=train", f"model={family}", f"model.id={checkpoints(family)}", "dataset=files", *files,
            "dataset.columns={image: picture, question: query, answer: response}", "dataset.validation_fraction=0",
            "train.num_train_epochs=3", "train.logging_steps=1", "train.save_strategy=no", "train.eval_strategy=no",
            "train.per_device_train_batch_size=48", "train.gradient_accumulation_steps=1", "train.learning_rate=1e-3",
            "train.lr_scheduler_type=constant", "train.dataloader_num_workers=0", "peft.r=4", "peft.lora_alpha=8",
            "peft.lora_dropout=0", "export.parity_examples=0", "threads=1", *options,
        )  # fmt: skip
        config.model.processor_kwargs = {}  # the sizes are those of the real checkpoint
        directory = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        with Run.open(directory, config, []) as opened:
            train(config, opened)
        lines = [line for line in read_jsonl(directory / "metrics.jsonl") if "loss" in line]
        assert len(lines) == 3
        record = read_json(directory / "run.json")
        return Steps(record, [line["loss"] for line in lines], [line["grad_norm"] for line in lines])

    return run


@pytest.fixture(scope="session")
def plain() -> list[str]:
    """Options that put every row by itself and pad it."""
    known = Collator.__dataclass_fields__
    return [f"collator.{name}=never" for name in ("share_images", "packing") if name in known]


def in_precision(name: str) -> list[str]:
    """Weights and arithmetic in float32, or in bfloat16; on a CPU both are float32."""
    return [f"model.dtype={name}", f"train.bf16={str(name == 'bfloat16').lower()}"]
