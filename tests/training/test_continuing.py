"""What an attempt compares with the ones before it, beside the configuration."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from vlmexp.errors import UserError
from vlmexp.files import read_json
from vlmexp.main import CONFIG_DIR
from vlmexp.runs import Run
from vlmexp.training.stage import train_model

TINY = CONFIG_DIR.parent / "vlmexp" / "assets" / "tiny"


def change(directory, *path, value):
    record = read_json(directory / "run.json")
    place = record
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = value
    (directory / "run.json").write_text(json.dumps(record))


def run_training(config, directory):
    with Run.open(directory, config, []) as run:
        train_model(config, run)
    (directory / "deployment_model").mkdir(exist_ok=True)
    return read_json(directory / "run.json")


def test_what_a_training_goes_on_with_is_compared(small, tmp_path, cut_after):
    shutil.copytree(TINY, tmp_path / "base")
    config = small(
        f"model.id={tmp_path / 'base'}", "train.max_steps=4", "train.save_steps=2", "train.eval_strategy=no",
        "train.gradient_accumulation_steps=1", "export.parity_examples=0",
    )  # fmt: skip
    record = run_training(config, tmp_path / "run")
    assert record["steps"] == {"batch_size": 4, "accumulation": 1, "processes": 1}
    assert record["computed_with"].items() >= {"device": "cpu", "precision": "float32"}.items()
    cut = cut_after(tmp_path / "run", 2)

    change(cut, "data", "splits", "train", "examples", value=1000)
    with pytest.raises(UserError, match=r"other examples than its data give now \(examples 1000 then and \d+ now"):
        run_training(config, cut)
    change(cut, "data", "splits", value=record["data"]["splits"])

    weights = load_file(tmp_path / "base" / "model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file(weights | {name: weights[name] * 2}, tmp_path / "base" / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"began on other weights or files than there are now in model.id=.*base: an"):
        run_training(config, cut)
    shutil.copy(TINY / "model.safetensors", tmp_path / "base")

    # As if three processes of another machine had begun it.
    change(cut, "steps", "processes", value=3)
    change(cut, "computed_with", "precision", value="bf16")
    change(cut, "computed_with", "torch", value="2.0.1")
    record = run_training(config, cut)
    assert record["stages"]["train"]["resumed_from"] == "checkpoint-2"
    first, second = record["fallbacks"]
    assert first.startswith("The training goes on with precision float32 instead of bf16, torch ")
    assert "instead of 2.0.1: its steps may round otherwise" in first
    assert second == (
        "The run began with 3 processes and goes on with 1: with train.per_device_train_batch_size=4 and "
        "train.gradient_accumulation_steps=3 a step has its 12 examples as before."
    )
