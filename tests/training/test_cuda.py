"""What only a GPU shows: half precision, loss scaling, its memory, workers beside it. Skipped where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.families import FAMILIES, write_checkpoint
from tests.training.test_train import losses, run_training
from vlmexp.errors import UserError
from vlmexp.files import read_json
from vlmexp.pipeline import pipeline
from vlmexp.runs import Run
from vlmexp.training.stage import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")


@pytest.mark.parametrize("precision", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_whole_line_of_every_family(family, precision, compose, vqa_files, tmp_path):
    """Data, base evaluation, LoRA, export with its parity check and evaluation, weights in this precision."""
    folder = write_checkpoint(family, tmp_path / "checkpoint")
    files = [f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
    mixed = {"bfloat16": ["train.bf16=true"], "float16": ["train.bf16=false", "train.fp16=true"]}
    config = compose(
        f"model={family}", f"model.id={folder}", f"model.dtype={precision}", "dataset=files", *files,
        "dataset.columns={image: picture, question: query, answer: response}", "train.max_steps=4",
        "train.per_device_train_batch_size=4", "train.logging_steps=1", "train.dataloader_num_workers=0", "peft.r=4",
        *mixed.get(precision, ["train.bf16=false"]),
    )  # fmt: skip
    config.model.processor_kwargs = {}  # the sizes are those of the real checkpoint
    with Run.open(tmp_path / "run", config, []) as run:
        pipeline(config, run)
    record = read_json(tmp_path / "run" / "run.json")
    assert record["status"] == "done"
    assert record["model"]["dtype"] == precision
    assert record["model"]["device"] == torch.cuda.get_device_name()
    assert record["memory_preflight"]["device"] == "cuda"
    differences = record["export"]["parity"]["differences"]
    assert differences
    assert all(difference["accepted"] for difference in differences.values())


def test_a_resumed_run_is_the_undisturbed_run(small, tmp_path, cut_after):
    """Kernels of a GPU add in no fixed order: losses are equal but for rounding."""
    config = small("train.save_total_limit=20", "model.dtype=float32", "train.bf16=false")
    steps = run_training(config, tmp_path / "whole")["stages"]["train"]["steps"]
    whole = losses(tmp_path / "whole")
    cut = cut_after(tmp_path / "whole", 3)
    assert run_training(config, cut)["stages"]["train"]["resumed_from"] == "checkpoint-3"
    assert [row[0] for row in whole if row[1] is not None] == list(range(1, steps + 1))
    assert [row[1] for row in losses(cut)] == pytest.approx([row[1] for row in whole], rel=1e-3)


def test_steps_that_the_loss_scale_skips_are_no_divergence(small, tmp_path):
    """Mixed precision in fp16 begins with a scale of 65,536 and halves it whenever gradients overflow."""
    config = small("model.dtype=float32", "train.bf16=false", "train.fp16=true", "train.max_steps=12")
    assert run_training(config, tmp_path / "run")["stages"]["train"]["steps"] == 12


@pytest.mark.parametrize("precision", [["train.bf16=true"], ["train.bf16=false", "train.fp16=true"]])
def test_a_training_that_diverges_stops(small, tmp_path, precision):
    config = small("train.learning_rate=1e12", "train.max_steps=40", "train.save_steps=1", *precision)
    with pytest.raises(UserError, match="learning rate"), Run.open(tmp_path / "run", config, []) as run:
        train(config, run)
    from safetensors.torch import load_file

    saved = list((tmp_path / "run" / "checkpoints").glob("*/*.safetensors"))
    assert saved
    for path in saved:
        assert all(value.isfinite().all() for value in load_file(path).values()), path
    assert not (tmp_path / "run" / "model").exists()


def test_a_batch_that_does_not_fit_is_named_with_one_that_does(small, tmp_path):
    config = small(
        "train.per_device_train_batch_size=32", "collator.share_images=never", "train.gradient_accumulation_steps=1",
        "train.gradient_checkpointing=false",
    )  # fmt: skip
    torch.cuda.empty_cache()
    free, whole = torch.cuda.mem_get_info()
    used = torch.cuda.memory_reserved()
    torch.cuda.set_per_process_memory_fraction((used + 96 * 2**20) / whole)
    try:
        with pytest.raises(UserError, match=r"train.per_device_train_batch_size=\d+ fits"):
            run_training(config, tmp_path / "run")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert free > 0


def test_workers_read_ahead_by_default(small, tmp_path):
    config = small("train.max_steps=3")
    del config.train["dataloader_num_workers"]
    run_training(config, tmp_path / "run")
    arguments = torch.load(next(Path(tmp_path / "run" / "checkpoints").glob("*/training_args.bin")), weights_only=False)
    assert arguments.dataloader_num_workers > 0
