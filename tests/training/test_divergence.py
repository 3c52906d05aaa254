"""A number that is not finite never reaches a weight, and the run goes on from its last checkpoint."""

from __future__ import annotations

import json
import math
import random
import shutil

import pytest
import torch
from safetensors.torch import load_file

from tests.training.planted import planted
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.training import stage
from vlmexp.training.divergence import MOST_OVERFLOWS, StepWatch, all_finite
from vlmexp.training.trainer import VlmTrainer

SHORT = [
    "train.memory_preflight=false", "train.gradient_audit=off", "train.max_steps=8", "train.save_steps=3",
    "train.eval_strategy=no", "train.gradient_accumulation_steps=2", "train.per_device_train_batch_size=2",
]  # fmt: skip


def run_training(config, directory) -> dict:
    with Run.open(directory, config, []) as run:
        stage.train_model(config, run)
    return read_json(directory / "run.json")


def fails(config, directory) -> str:
    with pytest.raises(UserError) as told:
        run_training(config, directory)
    assert told.value.exit_code == 1
    assert read_json(directory / "run.json")["status"] == "failed"
    return str(told.value)


def outcome(directory) -> tuple[list, bytes]:
    rows = [(row["step"], row.get("loss"), row.get("grad_norm")) for row in read_jsonl(directory / "metrics.jsonl")]
    return rows, (directory / "model" / "adapter_model.safetensors").read_bytes()


def strict_json(directory) -> None:
    """No NaN in metrics.jsonl, which JSON does not have."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    for line in (directory / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def saved_weights_are_finite(directory) -> bool:
    return all(all_finite(load_file(path).values()) for path in directory.rglob("*.safetensors"))


@pytest.mark.slow
def test_thirty_runs_with_a_number_that_is_not_finite(small, tmp_path):
    config = small(*SHORT, "train.max_steps=5", "train.save_steps=2", "train.gradient_accumulation_steps=1")
    run_training(config, tmp_path / "whole")
    whole = outcome(tmp_path / "whole")
    chance = random.Random(0)
    for number in range(30):
        step, where = chance.randint(1, 5), chance.choice(["loss", "gradient", "weights"])
        directory = tmp_path / str(number)
        with planted(step, where, chance.choice([math.nan, math.inf, -math.inf])):
            text = fails(config, directory)
        # Bad weights are found before they are saved, and else by the loss of the next step.
        found = step + 1 if where == "weights" and step not in (2, 4, 5) else step
        assert f"diverged at step {found}: " in text
        last = (found - 1) // 2 * 2
        assert (f"goes on from checkpoint-{last}" if last else "starts anew") in text
        assert saved_weights_are_finite(directory)
        assert not (directory / "model").exists()
        strict_json(directory)
        assert run_training(config, directory)["stages"]["train"]["resumed_from"] == (
            f"checkpoint-{last}" if last else None
        )
        assert outcome(directory) == whole
        shutil.rmtree(directory)


def test_what_is_said_and_kept(small, tmp_path):
    config = small(*SHORT, "train.save_total_limit=1", "train.logging_steps=5")
    with planted(5, "gradient", math.inf):
        text = fails(config, tmp_path / "run")
    record = read_json(tmp_path / "run" / "run.json")
    (divergence,) = record["divergences"]
    assert divergence["step"] == 5
    assert divergence["grad_norm"] == "inf"
    assert divergence["loss"] > 0
    assert divergence["learning_rate"] == pytest.approx(2e-3 * 0.5 * (1 + math.cos(math.pi * 3 / 7)))
    assert len(divergence["examples"]) == 4  # two batches of two
    assert f"the gradient norm inf, the learning rate {divergence['learning_rate']:.4g}" in text
    assert f"the examples {', '.join(divergence['examples'])}." in text
    assert f"run={tmp_path / 'run'} goes on from checkpoint-3" in text
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-3"]
    line = read_jsonl(tmp_path / "run" / "metrics.jsonl")[-1]
    assert (line["step"], line["grad_norm"]) == (5, "inf")
    # Of several batches, those whose own loss is not finite.
    shutil.rmtree(tmp_path / "run")
    with planted(2, "loss"):
        fails(config, tmp_path / "run")
    (divergence,) = read_json(tmp_path / "run" / "run.json")["divergences"]
    assert divergence["loss"] == "nan"
    assert len(divergence["examples"]) == 2


def test_weights_and_evaluations_that_are_not_finite(small, tmp_path, monkeypatch):
    """A step may be too large though its gradient is finite: no checkpoint has it, nor the model."""
    for strategy in ("steps", "no"):
        with planted(3, "weights", math.inf):
            text = fails(small(*SHORT, f"train.save_strategy={strategy}", "train.max_steps=3"), tmp_path / strategy)
        assert "diverged at step 3: it left weights that are not finite. No such weights were saved; " in text
        assert not list((tmp_path / strategy).rglob("*.safetensors"))
    compute_loss = VlmTrainer.compute_loss

    def lost(self, model, inputs, *args, **kwargs):
        loss = compute_loss(self, model, inputs, *args, **kwargs)
        return loss if model.training or self.state.global_step < 4 else loss * math.nan

    monkeypatch.setattr(VlmTrainer, "compute_loss", lost)
    evaluated = [*SHORT, "train.eval_strategy=steps", "train.eval_steps=2", "train.save_steps=2"]
    text = fails(small(*evaluated), tmp_path / "evaluated")
    assert "diverged at step 4: the evaluation behind it has a loss of nan, in the batch of the examples train-" in text
    assert "goes on from checkpoint-2" in text
    assert [row["eval_loss"] for row in read_jsonl(tmp_path / "evaluated" / "metrics.jsonl") if "eval_loss" in row][
        -1
    ] == "nan"
    strict_json(tmp_path / "evaluated")


def test_a_rewind_lowers_the_learning_rate(small, tmp_path, monkeypatch):
    config = small(*SHORT, "train.on_divergence=rewind", "train.most_rewinds=2", "train.save_total_limit=9")
    run_training(small(*SHORT), tmp_path / "whole")
    rates = [row["learning_rate"] for row in read_jsonl(tmp_path / "whole" / "metrics.jsonl")]
    with planted(6):
        record = run_training(config, tmp_path / "run")
    assert record["status"] == "done"
    (divergence,) = record["divergences"]
    assert (divergence["rewound_to"], divergence["learning_rate_factor"]) == ("checkpoint-3", 0.5)
    lowered = [row["learning_rate"] for row in read_jsonl(tmp_path / "run" / "metrics.jsonl")]
    assert lowered == pytest.approx([*rates[:3], *(rate / 2 for rate in rates[3:])])
    # A resume goes on with the lowered rate, from a checkpoint of before the rewind and from one behind it.
    whole = outcome(tmp_path / "run")
    for step in (3, 6):
        directory = tmp_path / f"cut-{step}"
        shutil.copytree(tmp_path / "run", directory)
        for path in directory.glob("checkpoints/*"):
            if int(path.name.rpartition("-")[2]) > step:
                shutil.rmtree(path)
        shutil.rmtree(directory / "model")
        record = read_json(directory / "run.json")
        del record["stages"]["train"]
        (directory / "run.json").write_text(json.dumps(record))
        run_training(config, directory)
        assert outcome(directory) == whole

    # The checkpoint right before the step that fails may be what is wrong: the one before it is taken.
    with planted(7):
        record = run_training(config, tmp_path / "next")
    assert record["divergences"][0]["rewound_to"] == "checkpoint-3"

    # It ends when the rewinds are used up, and says so; without a checkpoint it starts anew.
    monkeypatch.setattr(
        StepWatch, "check", lambda self, norm, scaled: {"loss": math.nan, "grad_norm": 1.0, "examples": ["a"]}
    )
    text = fails(config, tmp_path / "hopeless")
    assert "it was rewound train.most_rewinds=2 times" in text
    divergences = read_json(tmp_path / "hopeless" / "run.json")["divergences"]
    assert [d.get("rewound_to", "stopped") for d in divergences] == [None, None, "stopped"]
    assert [d.get("learning_rate_factor") for d in divergences] == [0.5, 0.25, None]


def test_overflows_of_half_precision_are_normal_until_they_go_on():
    watch = StepWatch()
    for _ in range(MOST_OVERFLOWS):
        watch.begin([["a"]])
        watch.add(torch.tensor(1.0))
        assert watch.check(torch.tensor(math.inf), scaled=True) is None
    bad = watch.check(math.inf, scaled=True)
    assert bad == {"loss": 1.0, "grad_norm": math.inf, "examples": ["a"]}
    assert watch.check(1.0, scaled=True) is None
    assert watch.check(math.inf, scaled=True) is None
    assert watch.check(math.inf, scaled=False) is not None
    watch.begin([["b"]])
    watch.add(torch.tensor(math.nan))
    assert watch.check(1.0, scaled=True)["examples"] == ["b"]
