"""Two processes: what is not finite on one rank ends both, losses are those of one process, and DDP's options."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.conftest import ROOT, cli_environment
from tests.training.conftest import SMALL, logged
from tests.training.test_divergence import outcome, saved_weights_are_finite
from vlmexp.files import read_json, read_jsonl

pytestmark = pytest.mark.slow

QUICK = ["peft.lora_dropout=0", "train.memory_preflight=false", "train.gradient_audit=off"]
NO_EVALUATION = ["train.eval_strategy=no", "train.max_steps=4", "train.save_steps=2"]
STOPPING = [
    "train.max_steps=9", "train.learning_rate=0.02", "train.eval_steps=1", "train.save_steps=1", "train.warmup_steps=0",
    "train.metric_for_best_model=loss", "train.early_stopping_patience=2",
]  # fmt: skip
DDP = [
    "train.ddp_find_unused_parameters=false", "train.ddp_bucket_cap_mb=1", "train.ddp_broadcast_buffers=false",
    "train.ddp_static_graph=true",
]  # fmt: skip
STILL = ["train.learning_rate=0", "train.save_strategy=no", "train.eval_strategy=no"]
PLANTS = [(rank, step, where) for rank, step, where in ((1, 3, "loss"), (0, 4, "gradient"), (1, 2, "gradient"))]


def test_two_processes(trained, uneven, vqa_files, tmp_path, data_dir):
    """One start of torchrun, many trainings."""
    files = [f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
    common = [*SMALL, *QUICK, *files, f"paths.data={data_dir}", "train.per_device_train_batch_size=2"]
    jobs: list = [["whole", NO_EVALUATION, None], ["ddp", [*NO_EVALUATION, *DDP], None]]
    for number, (rank, step, where) in enumerate(PLANTS):
        plant = {"rank": rank, "step": step, "where": where}
        jobs += [[f"planted-{number}", NO_EVALUATION, plant], [f"planted-{number}", NO_EVALUATION, None]]
    jobs += [[f"eval-{n}", [*STOPPING, f"train.per_device_eval_batch_size={n}"], None] for n in (1, 3, 8)]
    jobs.append(
        [
            "means",
            [
                *STILL,
                "train.train_sampling_strategy=random",
                "train.max_steps=1",
                "train.average_tokens_across_devices=false",
            ],
            None,
        ]
    )
    (tmp_path / "jobs.json").write_text(json.dumps([[name, [*common, *more], plant] for name, more, plant in jobs]))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.training.two_ranks"]
    done = subprocess.run(
        [*command, str(tmp_path / "jobs.json"), str(tmp_path)],
        cwd=ROOT, env=cli_environment(data_dir), capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, other = (read_json(tmp_path / f"said-{rank}.json") for rank in (0, 1))
    assert said == other
    assert [text is not None for text in said] == [plant is not None for _, _, plant in jobs]

    # NaN on one rank: both stop at the step, and a resume ends where the undisturbed run does.
    for number, (_, step, where) in enumerate(PLANTS):
        directory = tmp_path / f"planted-{number}"
        assert f"diverged at step {step}: the loss is" in said[2 + 2 * number]
        (divergence,) = read_json(directory / "run.json")["divergences"]
        assert len(divergence["examples"]) == (2 if where == "loss" else 4)  # of the rank's batch, or of both ranks
        assert saved_weights_are_finite(directory)
        assert outcome(directory) == outcome(tmp_path / "whole")
        trained_again = read_json(directory / "run.json")["stages"]["train"]
        assert trained_again["resumed_from"] == ("checkpoint-2" if step > 2 else None)

    ddp, whole = (logged(read_jsonl(tmp_path / name / "metrics.jsonl")) for name in ("ddp", "whole"))
    assert [loss for _, loss in ddp] == pytest.approx([loss for _, loss in whole], rel=1e-5)

    # The same evaluations, the same best checkpoint and the same end as one process has.
    def strip(options: list[str]) -> list[str]:
        return [option.removeprefix("train.") for option in options]

    alone, lines, _, _ = trained(*strip(STOPPING), "per_device_train_batch_size=4", "per_device_eval_batch_size=8")
    for size in (1, 3, 8):
        rows = read_jsonl(tmp_path / f"eval-{size}" / "metrics.jsonl")
        for name in ("loss", "eval_loss"):
            expected = [value for _, value in logged(lines, name)]
            found = [value for _, value in logged(rows, name)]
            # This learning rate makes the loss worse, and each step makes ten times as much of a rounding error.
            assert found == pytest.approx(expected, rel=1e-3), (name, size)
            assert found[0] == pytest.approx(expected[0], rel=1e-5), (name, size)
        result = read_json(tmp_path / f"eval-{size}" / "run.json")["stages"]["train"]
        assert result["best_checkpoint"] == f"checkpoint-{alone.state.best_global_step}"
        assert result["steps"] == alone.state.global_step

    # Without average_tokens_across_devices a step's loss is the mean of the ranks' means.
    _, lines, _, _ = trained(
        *strip(STILL), "max_steps=2", "per_device_train_batch_size=2", "train_sampling_strategy=random"
    )
    (_, first), (_, second) = logged(lines)
    ((_, loss),) = logged(read_jsonl(tmp_path / "means" / "metrics.jsonl"))
    assert first != second
    assert loss == pytest.approx((first + second) / 2, rel=1e-5)
