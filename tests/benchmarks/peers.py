"""A LoRA training by what one would use otherwise, in a process of its own: `python -m tests.benchmarks.peers FILE`.

FILE holds a task as JSON, see `tests.benchmarks.trainings.peer`; what came of it goes to the task's `output`. No other
part imports this: it runs in environments that have no vlmexp.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from PIL import Image
from transformers.trainer_callback import PrinterCallback

END = "<|im_end|>"  # of an answer, in the benchmarks' models
TEMPLATE = "vlmexp_benchmark"  # what LLaMA-Factory shall call their conversation format


class Clock(hf.TrainerCallback):
    """When each optimizer step ended, and what was logged of it."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.losses: list[float] = []
        self.grad_norms: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.ends.append(time.perf_counter())

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.losses.append(float(logs["loss"]))
            self.grad_norms.append(float(logs["grad_norm"]))


class LiveCollator:
    """Prompt and answer through the processor at once; the loss is on the answer and its end."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def __call__(self, rows: Sequence[dict[str, str]]) -> dict[str, Any]:
        prompts = [
            self.processor.apply_chat_template(
                [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": row["question"]}]}],
                add_generation_prompt=True,
            )
            for row in rows
        ]
        answers = [row["answer"] + END for row in rows]
        images = []
        for row in rows:
            with Image.open(row["image"]) as image:
                images.append(image.convert("RGB"))
        texts = [prompt + answer for prompt, answer in zip(prompts, answers, strict=True)]
        batch = dict(self.processor(images=images, text=texts, padding=True, padding_side="right", return_tensors="pt"))
        labels = torch.full_like(batch["input_ids"], -100)
        for row, answer in enumerate(answers):
            end = int(batch["attention_mask"][row].sum())
            start = end - len(self.processor.tokenizer(answer, add_special_tokens=False)["input_ids"])
            labels[row, start:end] = batch["input_ids"][row, start:end]
        return batch | {"labels": labels}


def adapted_model(task: dict[str, Any]) -> Any:
    from peft import LoraConfig, get_peft_model

    dtype = torch.float32 if task["device"] == "cpu" else torch.bfloat16
    model = hf.AutoModelForImageTextToText.from_pretrained(task["model"], dtype=dtype).to(task["device"])
    torch.manual_seed(0)
    lora = LoraConfig(r=task["rank"], lora_alpha=2 * task["rank"], target_modules="all-linear")
    return get_peft_model(model, lora)


def arguments(task: dict[str, Any]) -> dict[str, Any]:
    """What every Trainer is told: rows come in the order of the file."""
    on_gpu = task["device"] != "cpu"
    return {
        "output_dir": task["folder"], "num_train_epochs": 1, "per_device_train_batch_size": task["micro"],
        "gradient_accumulation_steps": task["step"] // task["micro"], "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant", "seed": 0, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "logging_steps": 1, "remove_unused_columns": False, "use_cpu": not on_gpu, "bf16": on_gpu,
        "dataloader_pin_memory": False, "gradient_checkpointing": task["checkpointing"],
        "dataloader_num_workers": task["workers"],
    }  # fmt: skip


def bare(task: dict[str, Any], rows: list[dict[str, str]], clock: Clock) -> None:
    """A loop over batches that are in memory before it begins."""
    model, collate = adapted_model(task), LiveCollator(hf.AutoProcessor.from_pretrained(task["model"]))
    micro, step = task["micro"], task["step"]
    batches = [collate(rows[start : start + micro]) for start in range(0, len(rows), micro)]
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=task["learning_rate"], weight_decay=0.0)
    model.train()
    for first in range(0, len(batches), step // micro):
        group = batches[first : first + step // micro]
        tokens = sum((batch["labels"] != -100).sum() for batch in group)
        total = 0.0
        for batch in group:
            moved = {name: value.to(task["device"]) for name, value in batch.items()}
            loss = model(**moved, num_items_in_batch=tokens, use_cache=False).loss
            loss.backward()
            total += float(loss.detach())
        clock.grad_norms.append(float(torch.nn.utils.clip_grad_norm_(trained, 1.0)))
        optimizer.step()
        optimizer.zero_grad()
        clock.losses.append(total)
        clock.on_step_end()


def trainer(task: dict[str, Any], rows: list[dict[str, str]], clock: Clock) -> None:
    """transformers' Trainer with a live collator."""
    made = hf.Trainer(
        model=adapted_model(task),
        args=hf.TrainingArguments(**arguments(task), train_sampling_strategy="sequential", label_names=["labels"]),
        data_collator=LiveCollator(hf.AutoProcessor.from_pretrained(task["model"])),
        train_dataset=rows,  # type: ignore[arg-type]
        callbacks=[clock],
    )
    made.remove_callback(PrinterCallback)
    made.train()


def trl(task: dict[str, Any], rows: list[dict[str, str]], clock: Clock) -> None:
    """TRL's SFTTrainer; for images it takes neither packing nor padding-free batches, and its loss is chunked."""
    import datasets
    from trl import SFTConfig, SFTTrainer

    table = datasets.Dataset.from_list(
        [
            {
                "images": [row["image"]],
                "prompt": [{"role": "user", "content": row["question"]}],
                "completion": [{"role": "assistant", "content": row["answer"]}],
            }
            for row in rows
        ]
    ).cast_column("images", datasets.List(datasets.Image()))
    made = SFTTrainer(
        model=adapted_model(task),
        args=SFTConfig(
            **arguments(task), max_length=None, completion_only_loss=True, train_sampling_strategy="sequential"
        ),
        train_dataset=table,
        processing_class=hf.AutoProcessor.from_pretrained(task["model"]),
        callbacks=[clock],
    )
    made.remove_callback(PrinterCallback)
    made.train()


def llamafactory(task: dict[str, Any], rows: list[dict[str, str]], clock: Clock) -> None:
    """LLaMA-Factory with the same conversation format."""
    from llamafactory.data.formatter import StringFormatter
    from llamafactory.data.mm_plugin import get_mm_plugin
    from llamafactory.data.template import register_template
    from llamafactory.train.tuner import run_exp

    register_template(
        name=TEMPLATE,
        format_user=StringFormatter(slots=["<|im_start|>user\n{{content}}<|im_end|><|im_start|>assistant\n"]),
        format_assistant=StringFormatter(slots=["{{content}}<|im_end|>"]),
        stop_words=[END],
        mm_plugin=get_mm_plugin(name="qwen2_vl", image_token="<|image_pad|>", video_token="<|video_pad|>"),
    )
    folder = Path(task["folder"])
    turns = [
        {
            "messages": [
                {"role": "user", "content": f"<image>{row['question']}"},
                {"role": "assistant", "content": row["answer"]},
            ],
            "images": [row["image"]],
        }
        for row in rows
    ]
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {
        "file_name": "turns.json", "formatting": "sharegpt", "tags": tags,
        "columns": {"messages": "messages", "images": "images"},
    }  # fmt: skip
    (folder / "turns.json").write_text(json.dumps(turns))
    (folder / "dataset_info.json").write_text(json.dumps({"rows": about}))
    own = {name: value for name, value in arguments(task).items() if name not in ("remove_unused_columns", "report_to")}
    run_exp(
        {
            **own, "stage": "sft", "do_train": True, "finetuning_type": "lora", "lora_rank": task["rank"],
            "lora_alpha": 2 * task["rank"], "lora_target": "all", "freeze_vision_tower": False,
            "freeze_multi_modal_projector": False, "model_name_or_path": task["model"], "template": TEMPLATE,
            "dataset": "rows", "dataset_dir": str(folder), "cutoff_len": 4096, "disable_shuffling": True,
            "disable_gradient_checkpointing": not task["checkpointing"], "overwrite_cache": True, "report_to": "none",
            "overwrite_output_dir": True,
        },
        callbacks=[clock],
    )  # fmt: skip


WAYS: dict[str, Callable[[dict[str, Any], list[dict[str, str]], Clock], None]] = {
    "bare": bare, "trainer": trainer, "trl": trl, "llamafactory": llamafactory,
}  # fmt: skip


def main(path: Path) -> None:
    """Train as the task says and write what came of it."""
    task = json.loads(path.read_text())
    torch.set_num_threads(task["threads"])
    file = Path(task["data"])
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [{**lines[place], "image": str(file.parent / lines[place]["image"])} for place in task["order"]]
    clock = Clock()
    WAYS[task["way"]](task, rows, clock)
    on_gpu = task["device"] != "cpu"
    peak_mib = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else 0.0
    peak_mib = peak_mib or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    steps_s = [end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False)]
    result = {
        "steps_s": [0.0, *steps_s], "losses": clock.losses, "grad_norms": clock.grad_norms, "peak_mib": peak_mib,
    }  # fmt: skip
    Path(task["output"]).write_text(json.dumps(result))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
