"""What a token costs, and what the profile of a training holds."""

from __future__ import annotations

import gzip
import json

import pytest
import torch

from tests.training.test_train import losses, run_training, weights
from vlmexp.files import read_jsonl
from vlmexp.training.flops import counted, peak_flops


def test_products_of_matrices_are_counted():
    inputs, layer = torch.ones(5, 7, requires_grad=True), torch.nn.Linear(7, 11)
    # Forward, gradient of the inputs and gradient of the weights: 2 operations for each of 5 x 7 x 11 products.
    assert counted(lambda: layer(inputs).sum().backward()) == 3 * 2 * 5 * 7 * 11


def test_the_peak_of_a_device_that_no_data_sheet_tells_is_measured():
    peak, known = peak_flops(torch.device("cpu"), torch.float32)
    assert not known
    assert 1e8 < peak < 1e14


def test_what_a_token_costs_and_uses(small, tmp_path):
    """A token of full training costs about 6 operations a weight that it passes (PaLM, appendix B), LoRA's about 4."""
    weights_of, found = {}, {}
    for name, options in {"whole": {"config_class": None}, "adapter": None}.items():
        for checkpointing in ("false", "true"):
            config = small(
                "train.max_steps=2", f"train.gradient_checkpointing={checkpointing}", "train.fit=none",
                "collator.share_images=never",
            )  # fmt: skip
            if options:
                config.peft = options
            record = run_training(config, tmp_path / f"{name}-{checkpointing}")
            weights_of[name] = record["model"]["parameters"]
            found[name, checkpointing] = record["arithmetic"]["flops_per_token"]
            (first, *_) = (row for row in read_jsonl(tmp_path / f"{name}-{checkpointing}" / "metrics.jsonl"))
            about = record["arithmetic"]
            assert first["mfu"] == pytest.approx(
                first["tokens_per_s"] * about["flops_per_token"] / about["peak_flops"], rel=1e-3
            )
    for name in weights_of:  # what checkpointing computes twice is not counted twice (all but a little)
        assert found[name, "true"] == pytest.approx(found[name, "false"], rel=0.15)
    assert 0.6 < found["adapter", "false"] / found["whole", "false"] < 0.85
    assert 2 < found["whole", "false"] / weights_of["whole"] < 8


def test_a_profile_changes_nothing(small, tmp_path):
    for profiled in ("null", "2"):
        run_training(small("train.max_steps=4", f"train.profile={profiled}"), tmp_path / profiled)
    assert losses(tmp_path / "2") == losses(tmp_path / "null")
    assert weights(tmp_path / "2") == weights(tmp_path / "null")
    assert not (tmp_path / "null" / "profile").exists()
    with gzip.open(tmp_path / "2" / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    names = [event.get("name", "") for event in events]
    assert sum(name.startswith("Optimizer.step#") for name in names) == 2
    table = (tmp_path / "2" / "profile" / "table.txt").read_text()
    assert table.startswith("2 training steps, torch 2.")
    assert "aten::mm" in table or "aten::addmm" in table
