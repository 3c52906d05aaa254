"""Batches under a token budget on two processes: as many on each, and the loss of one process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import cli_environment
from tests.training.conftest import SMALL
from vlmexp.files import read_json, read_jsonl

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("sharing", ["auto", "never"])
def test_two_processes_train_like_one(cli, vqa_files, tmp_path, data_dir, sharing):
    """One step over all examples; then steps enough to come to a second epoch."""
    files = [f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
    options = [*SMALL, *files, "train.tokens_per_batch=130", "train.eval_strategy=no", "peft.lora_dropout=0"]
    options += [f"collator.share_images={sharing}"]
    whole = ["train.gradient_accumulation_steps=99", "train.max_steps=1"]
    done = cli(*options, *whole, f"hydra.run.dir={tmp_path / 'one'}", timeout=300)
    assert done.returncode == 0, done.stderr
    for name, more in (("two", whole), ("epochs", ["train.gradient_accumulation_steps=1", "train.num_train_epochs=2"])):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vlmexp", *options]
        done = subprocess.run(
            [*command, *more, f"hydra.run.dir={tmp_path / name}"],
            cwd=tmp_path, env=cli_environment(data_dir), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    (one,), (two,) = (read_jsonl(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-4)
    trained = read_json(tmp_path / "epochs" / "run.json")["stages"]["train"]
    assert trained["epochs"] == 2
    assert trained["steps"] > 4
