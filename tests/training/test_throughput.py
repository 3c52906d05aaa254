from __future__ import annotations

import pytest
import torch

from tests.training.test_answers import run_training
from vlmexp.files import read_json, read_jsonl
from vlmexp.training.throughput import Throughput


def test_tokens_are_counted_without_padding():
    throughput = Throughput()
    throughput.count({"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])})
    throughput.count({"attention_mask": torch.tensor([[1, 0]])})
    elapsed_s, tokens_per_s, data_wait = throughput.read()
    assert tokens_per_s * elapsed_s == pytest.approx(8)
    assert data_wait == 0
    throughput.restart()
    assert throughput.read()[1] == 0


def test_waiting_is_the_time_that_batches_take_to_come():
    throughput = Throughput()
    batches = throughput.timed(iter([{"a": 1}, {"a": 2}]))
    assert [next(batches), *batches] == [{"a": 1}, {"a": 2}]
    waited = throughput.read()[2]
    assert 0 < waited <= 1
    assert next(throughput.timed(iter([])), None) is None


def test_the_tokens_of_a_training_are_those_of_its_examples(small, tmp_path):
    every_five = ["train.max_steps=5", "train.logging_steps=5", "train.save_steps=5", "train.eval_strategy=no"]
    run_training(small("collator.share_images=never", *every_five), tmp_path / "run")
    (line,) = read_jsonl(tmp_path / "run" / "metrics.jsonl")
    about = read_json(tmp_path / "run" / "run.json")["data"]["splits"]["train"]
    # Both rates are over the same seconds, and all questions are about as long.
    assert line["tokens_per_s"] / line["samples_per_s"] == pytest.approx(about["mean_tokens"], rel=0.02)
