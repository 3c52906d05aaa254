from __future__ import annotations

import pytest

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
