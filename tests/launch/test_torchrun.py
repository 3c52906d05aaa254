"""Two processes of torchrun: one run directory, every question answered once."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT, cli_environment, only_run
from vlmexp.files import read_json, read_jsonl

pytestmark = pytest.mark.slow

JOB = [
    "threads=1", "train.per_device_train_batch_size=4", "train.gradient_accumulation_steps=1", "train.max_steps=2",
    "train.eval_steps=2", "train.eval_generation_examples=8", "evaluation.batch_size=3", "evaluation.blind_examples=20",
    "dataset.max_examples={train: 300, validation: 8, test: 50}",
]  # fmt: skip


def test_the_pipeline_on_two_ranks(cli, tmp_path, data_dir):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vlmexp", *JOB]
    done = subprocess.run(
        command, cwd=tmp_path, env=cli_environment(data_dir), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path)
    assert read_json(run / "run.json")["status"] == "done"
    assert (run / "train-rank1.log").exists()
    assert done.stdout.count("VQA accuracy") == 1
    alone = cli("stage=eval_base", *JOB, f"hydra.run.dir={tmp_path / 'alone'}", timeout=300)
    assert alone.returncode == 0, alone.stderr
    name = "evaluation/base_vlm_model_predictions.jsonl"
    assert read_jsonl(run / name) == read_jsonl(tmp_path / "alone" / name)
    assert len(read_jsonl(run / "evaluation" / "finetuned_vlm_model_predictions.jsonl")) == 50
    # The validation split, answered by two ranks during training and by one process afterwards.
    asked = ["evaluation.split=validation", "evaluation.blind=none", f"hydra.run.dir={tmp_path / 'again'}"]
    again = cli("stage=eval_finetuned", f"run={run}", *asked, timeout=300)
    assert again.returncode == 0, again.stderr
    result = read_json(tmp_path / "again" / "evaluation" / "finetuned_vlm_model_evaluation.json")
    during = read_jsonl(run / "metrics.jsonl")[-1]
    assert during["eval_n"] == result["n"] == 8
    given = {name: value for name, value in result["metrics"].items() if value is not None}
    assert {name: during[f"eval_{name}"] for name in given} == given
    assert result["undefined"].keys() == result["metrics"].keys() - given.keys() == {"bleu", "rouge2"}
    assert result["metrics"]["rouge1"] > 0


def test_a_rank_that_is_told_to_stop_stops_all_behind_one_checkpoint(tmp_path, data_dir):
    """The launcher signals the other rank, and the workers of both, as soon as the first has ended."""
    directory = tmp_path / "run"
    job = [*JOB, "stage=train", "train.max_steps=60", "train.eval_strategy=no", "train.logging_steps=1"]
    job += ["train.save_steps=100", "train.eval_generation_examples=0", "train.dataloader_num_workers=1"]
    job += ["export.parity_examples=0"]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "vlmexp", *job]
    launcher = subprocess.Popen(
        [*command, f"hydra.run.dir={directory}"],
        cwd=tmp_path, env=cli_environment(data_dir), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 200
    while len(read_jsonl(directory / "metrics.jsonl")) < 3:
        assert launcher.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (second,) = [pid for pid in children(launcher.pid) if b"\0RANK=1\0" in Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(second, signal.SIGTERM)
    said = launcher.communicate(timeout=120)[1]
    assert [int(code) for code in re.findall(r"exitcode\s*: (\S+) \(pid", said)] == [143, 143], said
    assert said.count("Stopped by SIGTERM. Continue with run=") == 1
    record, steps = read_json(directory / "run.json"), read_jsonl(directory / "metrics.jsonl")[-1]["step"]
    assert (record["status"], record["stages"]["train"]["status"]) == ("preempted", "preempted")
    assert steps < 60
    assert [path.name for path in (directory / "checkpoints").iterdir()] == [f"checkpoint-{steps}"]


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ranks_that_differ_are_refused(tmp_path, data_dir):
    """On the Trainer's side they would train silently wrong, or wait for each other for ever."""
    (tmp_path / "probe.py").write_text("def one(config, run):\n    return {}\ndef other(config, run):\n    return {}\n")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "vlmexp", *different, "hydra.run.dir=run"],
            cwd=tmp_path, stderr=subprocess.PIPE, text=True,
            env=cli_environment(data_dir)
            | {"PYTHONPATH": f"{ROOT}{os.pathsep}{tmp_path}"}
            | {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        )
        for rank, different in enumerate(
            (["stage=probe.one", "train.max_steps=6"], ["stage=probe.other", "train.max_steps=9"])
        )
    ]  # fmt: skip
    said = [rank.communicate(timeout=120)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [2, 2], said
    for text in said:
        assert (
            "The ranks of this job differ: train.max_steps is 6 on rank 0 and 9 on rank 1; "
            "stage is 'probe.one' on rank 0 and 'probe.other' on rank 1."
        ) in text
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_weights_are_not_sharded_behind_our_back(cli, tmp_path, name):
    """As `accelerate launch --use_fsdp` and `--use_deepspeed` ask for it."""
    done = cli("peft.r=2", **{f"ACCELERATE_USE_{name}": "true"})
    assert done.returncode == 2
    assert f"ACCELERATE_USE_{name}=true asks for sharded weights" in done.stderr
    assert not (tmp_path / "outputs").exists()


@pytest.mark.parametrize("arguments", [["-m", "peft.r=2,4"], ["experiment=sweep_lora", "hydra.run.dir=run"]])
def test_a_sweep_is_for_a_launcher(arguments, cli):
    done = cli(*arguments, RANK="0", WORLD_SIZE="2")
    assert done.returncode == 2
    assert "hydra/launcher=slurm" in done.stderr
