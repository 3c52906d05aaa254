"""The `train` group as the arguments of the Trainer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import TrainingArguments

from vlmexp import distributed
from vlmexp.config import Config, TrainExtras, library_options, train_extras
from vlmexp.errors import UserError
from vlmexp.training.workers import usable_cpus, worker_options


def training_arguments(
    config: Config, checkpoints: Path, note: Callable[[str], None], has_validation: bool
) -> TrainingArguments:
    """The `train` group as TrainingArguments, with what the hardware cannot do turned off and noted.

    Args:
        checkpoints: the folder for them.
        note: told of what is done differently from what was asked.

    Raises:
        UserError: TrainingArguments refuses a value.
    """
    options = library_options(config.train, TrainExtras)
    for name in ("bf16", "fp16"):
        if options.get(name) and not has_precision(name):
            note(f"train.{name}: this machine has no GPU that computes in {name}; training in float32.")
            options[name] = False
    if options.get("metric_for_best_model"):  # who names it wants the best, and not the last, as `model/`
        options.setdefault("load_best_model_at_end", True)
    if not has_validation and options.get("eval_strategy", "no") != "no":
        needing = {
            "load_best_model_at_end": options.get("load_best_model_at_end"),
            "metric_for_best_model": options.get("metric_for_best_model"),
            "early_stopping_patience": train_extras(config).early_stopping_patience,
            "eval_generation_examples": train_extras(config).eval_generation_examples,
        }
        for name, value in needing.items():
            if value:
                raise UserError(
                    f"train.{name}={value} needs a validation split, and {config.dataset.name} has none: set "
                    "dataset.validation_fraction above 0."
                )
        note("There is no validation split: training runs without evaluation.")
        options["eval_strategy"] = "no"
    # torch compares the types of AdamW's betas, and 0 is a whole number.
    options |= {name: float(options[name]) for name in ("adam_beta1", "adam_beta2") if name in options}
    # The option's name in transformers since 5.20; the old one still works there, with a warning.
    # Where both are given the new one counts: conf/train sets the old one.
    for name in ("checkpointing", "checkpointing_kwargs"):
        if f"gradient_{name}" in options:
            options.setdefault(f"activation_{name}", options.pop(f"gradient_{name}"))
    if options.get("activation_checkpointing"):
        # Re-entrant checkpointing loses gradients of adapters whose input needs none.
        options.setdefault("activation_checkpointing_kwargs", {"use_reentrant": False})
    options |= worker_options(options, torch.cuda.is_available(), usable_cpus(), distributed.local_world_size())
    try:
        return TrainingArguments(
            output_dir=str(checkpoints),
            seed=config.seed,
            data_seed=config.seed,
            report_to=[],  # MetricsFile reports
            label_names=["labels"],
            # The filter would hide what is not finite, and wait for the device at every batch.
            **{
                "remove_unused_columns": False,
                "prediction_loss_only": True,
                "logging_nan_inf_filter": False,
                **options,
            },
        )
    except (ValueError, TypeError) as error:
        raise UserError(f"train: TrainingArguments refuses its options: {' '.join(str(error).split())}") from None


def part_learning_rates(config: Config) -> dict[str, float]:
    """Part of the model -> its own learning rate, where one is set."""
    extras = train_extras(config)
    rates = {"vision": extras.vision_learning_rate, "projector": extras.projector_learning_rate}
    return {part: rate for part, rate in rates.items() if rate is not None}


def has_precision(name: str) -> bool:
    """Whether mixed precision in bf16 or fp16 runs on this machine's GPU."""
    return torch.cuda.is_available() and (name == "fp16" or torch.cuda.is_bf16_supported())
