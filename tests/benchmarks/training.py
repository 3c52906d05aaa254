"""Questions a second in training: TRL's SFTTrainer, separate samples, and shared images, all in one run.

    pip install 'vlmexp[benchmark]'
    python -m tests.benchmarks.training

The tiny model with LoRA on every linear layer, the same number of questions in each optimizer step, media read from
files by every way. Two kinds of data: as easy-VQA's (9 or 10 questions on an image of 16 tokens) and as VQA v2's (5 or
6 questions on an image of 300 to 600 tokens). The ways take turns, so that a noisy machine is as noisy to each.
"""

from __future__ import annotations

import dataclasses
import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import torch
from peft import LoraConfig
from rich.console import Console
from rich.table import Table
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from tests.benchmarks.evaluation import WORDS, questions
from vlmexp.collator.batch import Collator, Masking
from vlmexp.collator.lengths import token_lengths
from vlmexp.collator.media import media_key
from vlmexp.collator.prompt import ChatMessage, MessagePart, PromptTemplate
from vlmexp.data.example import Example
from vlmexp.models.adapter import attach
from vlmexp.models.load import ModelSource, load_model, load_processor
from vlmexp.models.modules import PARTS, ModulePatterns
from vlmexp.training.sampling import EpochSampler, by_length, by_media
from vlmexp.training.trainer import VlmTrainer

ROUNDS = 2
STEPS = 4  # and one more to warm up
PER_STEP = 32  # questions
# Images, questions an image, pixels of a side. The tiny model makes a token of 16 x 16 pixels.
KINDS = {"as easy-VQA": (40, (9, 10), (64, 64)), "as VQA v2": (40, (5, 6), (288, 384))}
SOURCE = ModelSource("vlmexp:tiny")


class Clock(TrainerCallback):
    """The seconds of each optimizer step but the first."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.ends.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        return self.ends[-1] - self.ends[0]


def arguments(folder: str, rows: int) -> dict[str, Any]:
    """What every trainer is told: `rows` questions in a forward pass, PER_STEP in an optimizer step."""
    return {
        "output_dir": folder, "max_steps": STEPS + 1, "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": PER_STEP // rows, "learning_rate": 1e-4, "seed": 0, "report_to": [],
        "save_strategy": "no", "disable_tqdm": True, "logging_strategy": "no", "remove_unused_columns": False,
        "use_cpu": True, "bf16": False, "dataloader_pin_memory": False, "gradient_checkpointing": False,
    }  # fmt: skip


def adapted_model() -> Any:
    """The tiny model with an adapter, the same weights each time."""
    torch.manual_seed(0)
    lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
    return attach(load_model(SOURCE, print), lora, PARTS, ModulePatterns())


def ours(rows: int, share_images: bool) -> Callable[[list[Example], str], Trainer]:
    """Our trainer with batches of `rows` questions."""

    def build(examples: list[Example], folder: str) -> Trainer:
        processor = load_processor(SOURCE, print)
        turns = [
            ChatMessage("user", (MessagePart("image"), MessagePart("text", "{question}"))),
            ChatMessage("assistant", (MessagePart("text", "{answer}"),)),
        ]
        template = PromptTemplate(processor, turns, "", ["question"])
        collator = Collator(processor, template, Masking(prompt=True), share_images=share_images)
        order = (
            by_media([str(media_key(example)) for example in examples])
            if share_images
            else by_length(token_lengths(collator, examples, with_answer=True), PER_STEP)
        )
        return VlmTrainer(
            model=adapted_model(),
            args=TrainingArguments(**arguments(folder, rows), prediction_loss_only=True, label_names=["labels"]),
            data_collator=collator,
            train_dataset=examples,
            train_sampler=EpochSampler(order, len(examples), 0),
        )

    return build


def trl(rows: int) -> Callable[[list[Example], str], Trainer]:
    """TRL's SFTTrainer on the same questions, with its loss on the answers as well."""

    def build(examples: list[Example], folder: str) -> Trainer:
        from trl import SFTConfig, SFTTrainer

        table = datasets.Dataset.from_list(
            [
                {
                    "images": [str(path) for path in example.images],
                    "prompt": [{"role": "user", "content": example.fields["question"]}],
                    "completion": [{"role": "assistant", "content": example.answer}],
                }
                for example in examples
            ]
        ).cast_column("images", datasets.List(datasets.Image()))
        return SFTTrainer(
            model=adapted_model(),
            args=SFTConfig(**arguments(folder, rows), max_length=None, completion_only_loss=True),
            train_dataset=table,
            processing_class=load_processor(SOURCE, print),
        )

    return build


WAYS = {
    "TRL SFTTrainer, 8 x 4": trl(8),
    "separate samples by length, 8 x 4": ours(8, share_images=False),
    "shared images, 32": ours(32, share_images=True),
}


def main() -> None:
    """Print a table for each kind of data."""
    torch.set_num_threads(1)
    for kind, shape in KINDS.items():
        with tempfile.TemporaryDirectory() as folder:
            rng = random.Random(1)
            examples = [
                dataclasses.replace(example, answers=(" ".join(rng.sample(WORDS, rng.randint(1, 2))),))
                for example in questions(Path(folder), *shape)
            ]
            seconds: dict[str, list[float]] = {name: [] for name in WAYS}
            for _ in range(ROUNDS):
                for name, build in WAYS.items():
                    trainer, clock = build(examples, folder), Clock()
                    trainer.add_callback(clock)
                    trainer.remove_callback(PrinterCallback)
                    trainer.train()
                    seconds[name].append(clock.seconds)
        report(kind, examples, seconds)


def report(kind: str, examples: Sequence[Example], seconds: dict[str, list[float]]) -> None:
    """Best of the rounds: what disturbs a run only makes it slower."""
    images = len({example.images for example in examples})
    title = f"{kind}: {len(examples) / images:.1f} questions an image, {STEPS} steps of {PER_STEP} questions"
    table = Table(title=title, title_justify="left")
    for heading in ("", "questions/s", "ratio"):
        table.add_column(heading, justify="right" if heading else "left")
    first = min(next(iter(seconds.values())))
    for name, times in seconds.items():
        table.add_row(name, f"{STEPS * PER_STEP / min(times):.1f}", f"{first / min(times):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
