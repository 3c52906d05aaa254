"""LoRA trainings on rows in a folder: ours through the command line, and those of others, step by step."""

from __future__ import annotations

import random
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.processes import interpreter, spent
from vlmexp.files import read_json, read_jsonl, write_json

RANK, LEARNING_RATE = 16, 1e-3
FAMILIES = {"small": "tiny", "qwen2vl_2b": "qwen2vl", "llava15_7b": "llava15"}  # model= of each checkpoint


@dataclass(frozen=True)
class Task:
    """What all ways train on.

    Attributes:
        model: folder of a checkpoint; family: what it is, see FAMILIES.
        data: a jsonl file; count: its questions, which each epoch sees.
        micro: questions in a forward pass; step: in an optimizer step.
        is_on_gpu: whether in bfloat16 on a GPU, or on a CPU.
    """

    model: Path
    data: Path
    count: int
    micro: int = 8
    step: int = 32
    epochs: int = 2
    family: str = "small"
    is_on_gpu: bool = False
    threads: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.count // self.step

    def shuffled(self, seed: int) -> list[int]:
        """The rows of all epochs, in random order."""
        rng = random.Random(seed)
        return [row for _ in range(self.epochs) for row in rng.sample(range(self.count), self.count)]


@dataclass(frozen=True)
class Training:
    """What a training took and came to: seconds, loss and norm of the gradient of each optimizer step.

    The seconds of a peer's first step are not known, and those of the first epoch hold what is done once. The peak of
    the memory is that of the GPU or else of the process, up to the last step.
    """

    steps_s: list[float]
    losses: list[float]
    grad_norms: list[float]
    peak_mib: float
    tokens_per_s: float = 0.0

    def last_epoch_s(self, epochs: int) -> float:
        """Seconds of the last epoch."""
        return sum(self.steps_s[-(len(self.steps_s) // epochs) :])


def command_line(task: Task, *options: str) -> list[str]:
    """The arguments of our training; options of the libraries are those of the peers."""
    return [
        "stage=train", f"model={FAMILIES[task.family]}", f"model.id={task.model}", "dataset=files",
        "dataset.convert=never", f"dataset.options.train={task.data}",
        f"dataset.options.test={task.data.with_name('test.jsonl')}",
        "dataset.prompt=['{question}']", "dataset.validation_fraction=0",
        "collator.max_length=8192", f"peft.r={RANK}", f"peft.lora_alpha={2 * RANK}", "peft.lora_dropout=0",
        f"train.learning_rate={LEARNING_RATE}", "train.lr_scheduler_type=constant",
        f"train.num_train_epochs={task.epochs}", f"train.per_device_train_batch_size={task.micro}",
        f"train.gradient_accumulation_steps={task.step // task.micro}", "train.logging_steps=1",
        "train.save_strategy=no", "train.eval_strategy=no", "export.parity_examples=0", f"threads={task.threads}",
        *options,
    ]  # fmt: skip


def ours(task: Task, folder: Path, *options: str) -> Training:
    """Train through the command line and read what the run directory says of the steps."""
    shutil.rmtree(folder, ignore_errors=True)
    variables = {"VLMEXP_DATA": str(folder.parent / "prepared")}
    command = [sys.executable, "-m", "vlmexp", *command_line(task, *options), "hydra.run.dir=run"]
    spent(command, folder, variables, task.threads)
    return training_of(folder / "run")


def training_of(run: Path) -> Training:
    """What a run directory says of its training."""
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "loss" in line]
    examples = read_json(run / "run.json")["data"]["splits"]["train"]["examples"]
    epochs = [0.0, *(line["epoch"] for line in lines)]
    steps_s = [
        (end - begin) * examples / line["samples_per_s"]
        for begin, end, line in zip(epochs, epochs[1:], lines, strict=False)
    ]
    tokens = sum(line["tokens_per_s"] * second for line, second in zip(lines, steps_s, strict=True))
    peak_mib = max(line["memory_gib"] for line in lines) * 1024
    losses, grad_norms = ([line[name] for line in lines] for name in ("loss", "grad_norm"))
    return Training(steps_s, losses, grad_norms, peak_mib, tokens / sum(steps_s))


def recorded(task: Task, folder: Path, *options: str) -> tuple[Training, list[int]]:
    """As `ours`, and the rows in the order in which it saw them; each step has `task.step` of them."""
    shutil.rmtree(folder, ignore_errors=True)
    variables, record = {"VLMEXP_DATA": str(folder.parent / "prepared")}, folder / "order.json"
    command = [sys.executable, "-m", "tests.benchmarks.recorded", record, *command_line(task, *options)]
    spent([*command, "hydra.run.dir=run"], folder, variables, task.threads)
    order = [int(name.rpartition("-")[2]) for step in read_json(record) for name in step]
    return training_of(folder / "run"), order


def peer(
    task: Task, folder: Path, way: str, order: Sequence[int], wheels: Path | None = None, **changed: int
) -> Training:
    """Train by one of the ways of `tests.benchmarks.peers`.

    Args:
        order: of the rows, of all epochs.
        changed: `micro`, `checkpointing` or `workers`, where they are others than the task's.

    Raises:
        Unavailable: its packages do not install here.
    """
    python = interpreter(way, wheels) if way in ("trl", "llamafactory") else Path(sys.executable)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    asked = {
        "way": way, "model": str(task.model), "data": str(task.data), "order": list(order), "micro": task.micro,
        "step": task.step, "rank": RANK, "learning_rate": LEARNING_RATE, "device": "cuda" if task.is_on_gpu else "cpu",
        "checkpointing": 0, "workers": 0, "threads": task.threads, "folder": str(folder),
        "output": str(folder / "result.json"), **changed,
    }  # fmt: skip
    write_json(folder / "task.json", asked)
    spent([python, "-m", "tests.benchmarks.peers", folder / "task.json"], folder, threads=task.threads)
    return Training(**read_json(folder / "result.json"))
