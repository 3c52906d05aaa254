"""A training on one process, then two, then one again: the steps of an undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest

from tests.conftest import cli_environment
from tests.training.conftest import SMALL
from tests.training.watched import watched_training
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl
from vlmexp.training.batch_plan import BatchPlan, shared_by
from vlmexp.training.rank_batches import DealtCollator, DealtExamples, RankBatches
from vlmexp.training.sampling import EpochSampler, shuffled

ORDERS = {
    "by length": ["collator.share_images=never"],
    "by image": ["collator.share_images=auto"],
    "by tokens": ["collator.share_images=never", "train.tokens_per_batch=100"],
    "smaller batches": ["collator.share_images=never", "train.gradient_accumulation_steps=1"],
}


@pytest.mark.parametrize(
    ("plan", "processes", "whole_batches", "expected"),
    [
        ((8, 2, 1), 2, False, (8, 1, 2)),
        ((8, 1, 2), 1, False, (8, 2, 1)),
        ((8, 4, 2), 4, True, (8, 2, 4)),
        ((8, 1, 1), 2, False, (4, 1, 2)),
        ((8, 3, 1), 2, False, (6, 2, 2)),
        ((6, 1, 2), 3, False, (4, 1, 3)),
        ((1, 12, 1), 8, False, "12 examples (it began with 1 process), which 8 processes .* 1, 2, 3, 4, 6 or 12"),
        ((8, 1, 2), 3, False, "16 examples .* with 2 processes.* 3 processes .* continue it with 1, 2, 4, 8 or 16"),
        ((8, 1, 1), 2, True, "1 batches .* continue it with 1"),
    ],
)
def test_a_step_is_shared_by_other_processes(plan, processes, whole_batches, expected):
    if isinstance(expected, str):
        with pytest.raises(UserError, match=expected.replace("(", r"\(").replace(")", r"\)")):
            shared_by(BatchPlan(*plan), processes, whole_batches)
    else:
        assert shared_by(BatchPlan(*plan), processes, whole_batches) == BatchPlan(*expected)


@pytest.mark.parametrize("processes", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 2, 12, 13, 17])
@pytest.mark.parametrize("drop_last", [False, True])
def test_every_process_has_as_many_batches_and_every_example_its_place(processes, count, drop_last):
    whole = EpochSampler(shuffled(count), count, seed=3, batch_size=2, drop_last=drop_last)
    dealt = [RankBatches(whole, processes, process) for process in range(processes)]
    for batches in dealt:
        batches.set_epoch(1)
    own = [list(batches) for batches in dealt]
    assert {len(batches) for batches in own} == {len(dealt[0])} == {-(-whole.batches_per_epoch // processes)}
    together = [batch for turn in zip(*own, strict=True) for batch in turn]
    filling = [batch for batch in together if batch[0] < 0]
    assert [batch for batch in together if batch[0] >= 0] == list(whole.batches(1))
    assert len(filling) == -whole.batches_per_epoch % processes
    assert sum(len(batch) for batch in together) - len(filling) == (count // 2 * 2 if drop_last else count)


def test_a_filling_batch_has_no_label(make_collator, draw):
    from tests.conftest import example

    examples = DealtExamples([example("is it red?", "yes", draw("red")), example("what?", "no", draw("blue"))])
    collate = DealtCollator(make_collator())
    real, filling = collate([examples[1]]), collate([examples[~1]])
    assert (real["labels"] != -100).any()
    assert (filling["labels"] == -100).all()
    assert (filling["input_ids"] == real["input_ids"]).all()
    assert (DealtCollator(make_collator(), without_loss=False)([examples[~1]])["labels"] == real["labels"]).all()


def seen(run: Path) -> dict[int, list[str]]:
    """Step -> the ids of the examples that it saw on all processes."""
    steps = defaultdict(list)
    for path in run.glob("seen-*.jsonl"):
        for step, ids in read_jsonl(path):
            steps[step] += ids
    return {step: sorted(ids) for step, ids in sorted(steps.items())}


def metrics(run: Path) -> list[list[float]]:
    rows = read_jsonl(run / "metrics.jsonl")
    return [[row["step"], row["epoch"], row["loss"], row["grad_norm"], row["learning_rate"]] for row in rows]


@pytest.mark.slow
def test_one_two_and_one_process_make_the_steps_of_one(vqa_files, tmp_path, data_dir):
    jobs = {}
    for name, options in ORDERS.items():
        files = [f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")]
        jobs[name] = [
            *SMALL, *files, f"paths.data={data_dir}", "peft.lora_dropout=0", "train.eval_strategy=no",
            "dataset.max_examples.train=19", "train.gradient_accumulation_steps=2", "train.save_strategy=no",
            "train.num_train_epochs=2", "train.learning_rate=1e-3", "train.memory_preflight=false", *options,
        ]  # fmt: skip
        watched_training(tmp_path / name / "whole", jobs[name], None)
        watched_training(tmp_path / name / "moved", jobs[name], 2)
    steps = {name: read_json(tmp_path / name / "whole" / "run.json")["stages"]["train"]["steps"] for name in jobs}
    # To the last step but one, so that the end of an epoch falls to two processes.
    second = [(str(tmp_path / name / "moved"), options, steps[name] - 1) for name, options in jobs.items()]
    (tmp_path / "second.json").write_text(json.dumps(second))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tests.training.watched"]
    done = subprocess.run(
        [*command, str(tmp_path / "second.json")],
        env=cli_environment(data_dir), capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for name, options in jobs.items():
        whole, moved = tmp_path / name / "whole", tmp_path / name / "moved"
        assert (moved / "seen-1.jsonl").exists(), name
        between = read_json(moved / "run.json")
        assert between["status"] == "preempted"
        watched_training(moved, options, None)
        assert seen(moved) == seen(whole), name
        for epoch in (0, 1):
            ids = [id for step, found in seen(moved).items() if step // (steps[name] // 2) == epoch for id in found]
            assert len(set(ids)) == len(ids) == 19, name
        for mine, theirs in zip(metrics(moved), metrics(whole), strict=True):
            assert mine == pytest.approx(theirs, rel=1e-5), name
        first, last = (read_json(run / "run.json") for run in (whole, moved))
        for key in ("steps", "epochs", "examples"):
            assert last["stages"]["train"][key] == first["stages"]["train"][key], name
        assert last["steps"] == first["steps"] == {**first["steps"], "processes": 1}
        size, accumulation = (2, 1) if name == "smaller batches" else (4, 1)
        assert last["fallbacks"] == [
            *first["fallbacks"],
            "The run began with 1 process and goes on with 2: with train.per_device_train_batch_size="
            f"{size} and train.gradient_accumulation_steps={accumulation} a step has its "
            f"{4 if name == 'smaller batches' else 8} examples as before.",
            "checkpoint-2 was written by 1 process, and 2 go on: random numbers, such as those of dropout, are drawn "
            "anew.",
            f"checkpoint-{steps[name] - 1} was written by 2 processes, and 1 go on: random numbers, such as those of "
            "dropout, are drawn anew.",
        ], name
