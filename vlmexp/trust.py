"""What is taken from a stored run: options of ours on a closed list, with values that are data and run nothing.

A run directory may be somebody else's. A value that names code, a program or a file to be written, each option that is
not on the list, and everything of Hydra's own need the user's word: `trust_run=true` on the command line.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, OverrideType, RangeSweep

from vlmexp import quoting
from vlmexp.errors import UserError

WORD = "trust_run"
Rule = Callable[[Any], bool]
_NAME = re.compile(r"[\w-]*")
_FILE_NAME = re.compile(r"[^/\\]*")
_OF_WANDB = re.compile(r"(offline-)?run-\d{8}_\d{6}-.+")  # a folder that W&B makes anew each time
_METRIC = re.compile(r"[\w-]*(/[\w-]+)?")  # also NAME/METRIC, of a data set of a suite
_REFERENCE = re.compile(r"\$\{[\w.]+\}")  # to another option; with a colon it is a function's call


def _is_number(value: Any) -> bool:
    """Numbers, true, false and null, also in lists and dictionaries."""
    if isinstance(value, Mapping):
        return all(_is_name(name) and _is_number(inner) for name, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_number, value))
    return value is None or isinstance(value, int | float)


def _is_name(value: Any) -> bool:
    """Numbers and plain words: no path of a module or of a file, and nothing to be resolved."""
    if isinstance(value, list):
        return all(map(_is_name, value))
    return _NAME.fullmatch(value) is not None if isinstance(value, str) else _is_number(value)


def _is_data(value: Any) -> bool:
    """Whatever is only read: texts, patterns, columns, folders; of what OmegaConf resolves, references to options."""
    if isinstance(value, Mapping):
        return all(_is_data(name) and _is_data(inner) for name, inner in value.items())
    if isinstance(value, list):
        return all(map(_is_data, value))
    return "${" not in _REFERENCE.sub("", value) if isinstance(value, str) else _is_number(value)


def _is_file_name(value: Any) -> bool:
    """A text that can only be the name of a file or folder in the folder where it is put."""
    return _is_data(value) and _FILE_NAME.fullmatch(str(value)) is not None and value not in (".", "..")


def _is_nothing(value: Any) -> bool:
    return value is None or value is False


_GROUPS = ("model", "dataset", "collator", "peft", "train", "evaluation", "suite", "tracking", "experiment")
# What an option's value may be; options of a group that is named itself follow its rule, unless they have their own.
_RULES: dict[str, Rule] = {
    "stage": _is_name,
    "run": _is_data, "seed": _is_data, "threads": _is_data,
    "image": _is_data, "video": _is_data, "question": _is_data,
    **{f"predict.{name}": _is_data for name in ("split", "max_examples", "weights")},
    **{f"paths.{name}": _is_data for name in ("data", "outputs", "multirun")},
    **{f"model.{name}": _is_data for name in (
        "id", "revision", "dtype", "device_map", "random_init", "end_of_turn", "prompt_style", "media", "modules",
        "shared_image_prefix", "boxes",
    )},
    "model.model_class": _is_name, "model.processor_class": _is_name,
    "model.import_path": lambda value: value == "transformers",
    "model.attn_implementation": _is_name,  # with a slash it is code of the Hub
    "model.trust_remote_code": _is_nothing,
    "model.export_writer": _is_nothing,
    "model.model_kwargs": lambda value: value in (None, {}),
    "model.model_kwargs.low_cpu_mem_usage": _is_number,
    "model.processor_kwargs": _is_number,
    "dataset.name": _is_file_name,
    "dataset.source": _is_name,
    "dataset.metrics": _is_name,
    **{f"dataset.{name}": _is_data for name in (
        "version", "options", "splits", "validation_fraction", "test_fraction", "split_seed", "max_examples", "columns",
        "required", "on_bad_sample", "max_bad_share", "on_duplicates", "convert", "train_answer", "metadata",
        "max_new_tokens", "decode_memory_mib", "decode_timeout_s", "max_file_gib", "prompt", "instruction",
        "open_instruction", "kept", "submission", "submission_id", "box_form",
    )},
    **{f"collator.{name}": _is_data for name in (
        "system_prompt", "messages", "max_length", "overlong", "template_options", "answer_follows", "data_processing",
        "image_processing", "video_processing", "label_masking", "share_images", "packing",
    )},
    "peft": _is_number,
    "peft.megatron_config": _is_nothing,  # it comes with a module to be imported
    **{f"peft.{name}": _is_name for name in ("config_class", "train_parts", "bias", "task_type", "init_weights")},
    **{f"peft.{name}": _is_data for name in (
        "init_lora_weights", "target_modules", "exclude_modules", "modules_to_save", "target_parameters",
        "layers_pattern", "layers_to_transform", "rank_pattern", "alpha_pattern", "quantization",
        "r", "lora_alpha", "lora_dropout",  # a number, or a reference to one
    )},
    "train": _is_number,
    **{f"train.{name}": _is_name for name in (
        "gradient_audit", "cache_vision_features", "on_divergence", "fit", "optim", "lr_scheduler_type",
        "logging_strategy", "eval_strategy", "save_strategy", "log_level", "log_level_replica",
        "train_sampling_strategy",
        "dataloader_multiprocessing_context", "torch_compile_backend", "torch_compile_mode",
        "include_num_input_tokens_seen",
    )},
    **{f"train.{name}": _is_data for name in (
        "optim_args", "optim_target_modules", "lr_scheduler_kwargs", "activation_checkpointing_kwargs",
        "gradient_checkpointing_kwargs", "learning_rate", "vision_learning_rate", "projector_learning_rate",
        "max_steps", "eval_steps", "save_steps", "logging_steps", "per_device_train_batch_size",
        "per_device_eval_batch_size", "gradient_accumulation_steps",
    )},
    "train.metric_for_best_model": lambda value: value is None or _METRIC.fullmatch(str(value)) is not None,
    "evaluation.metrics": _is_name,
    "evaluation.suite": _is_name,
    "evaluation.generation": _is_number,
    **{f"evaluation.{name}": _is_data for name in (
        "split", "batch_size", "max_examples", "max_new_tokens", "blind", "blind_examples", "answers", "choices",
        "max_choices", "rank_per_token", "invariance_examples", "reasoning_tags",
    )},
    **{f"tracking.{name}": _is_data for name in ("report_to", "project", "entity", "name", "mode", "predictions")},
    "export.parity_examples": _is_data, "export.push": _is_data, "export.private": _is_data,
    "export.writer": _is_nothing,
    "export.push_to_hub": _is_nothing,  # it would be written to with the user's own token
    **{f"preview.{name}": _is_data for name in ("split", "examples", "ids", "rows")},
    "preview.output": _is_nothing,  # a file that would be written
    **{f"compare.{name}": _is_data for name in (
        "runs", "metric", "evaluation", "group_seeds", "best", "failed", "diff", "paired", "examples", "format",
        "report_examples",
    )},
    "compare.output": _is_nothing, "compare.html": _is_nothing,
}  # fmt: skip


def untrusted(overrides: Iterable[str], config_dir: Path, other_files: bool = False) -> list[str]:
    """Those of a stored run's overrides that are not taken without the user's word.

    Args:
        config_dir: with the groups of options that are ours.
        other_files: whether the user names a folder with groups of their own, now.
    """
    return [text for text in overrides if not _is_harmless(quoting.parsed(text), config_dir, other_files)]


def untrusted_options(options: Mapping[str, Any]) -> list[str]:
    """Those of resolved options, dotted name -> value, that are not taken without the user's word."""
    leaves = (leaf for option, value in options.items() for leaf in _leaves(option, value))
    return [f"{option}={value}" for option, value in leaves if not _rule(option)(value)]


def _is_harmless(override: Override | None, config_dir: Path, other_files: bool) -> bool:
    if override is None or override.type == OverrideType.DEL or override.package is not None:
        return False
    option = override.key_or_group
    if option in _GROUPS:
        return all(_is_choice(value, config_dir / option, other_files) for value in _values(override))
    return all(_rule(name)(value) for wanted in _values(override) for name, value in _leaves(option, wanted))


def _is_choice(value: Any, folder: Path, other_files: bool) -> bool:
    """Whether a group's choice is one of our files, and not one that a search path or a path leads to."""
    if isinstance(value, list):
        return all(_is_choice(item, folder, other_files) for item in value)
    if not _is_name(value):
        return False
    return value is None or other_files or (folder / f"{value}.yaml").is_file()


def _values(override: Override) -> list[Any]:
    """The value, or those that a sweep takes one after another; of ranges, which are numbers, none."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        each = [quoting.parsed(f"{override.key_or_group}={text}") for text in override.sweep_string_iterator()]
        return [item.value() if item else override.input_line for item in each]
    return [] if isinstance(value, RangeSweep | IntervalSweep) else [value]


def _leaves(option: str, value: Any) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping) or not value:
        yield option, value
        return
    for name, inner in value.items():
        yield from _leaves(f"{option}.{name}", inner)


def _rule(option: str) -> Rule:
    """Of the option, or of the nearest group around it that has one."""
    while option:
        if option in _RULES:
            return _RULES[option]
        option = option.rpartition(".")[0]
    return lambda value: False


def links_out(directory: Path) -> list[str]:
    """Links in a run directory to what lies outside of it: what is written there would be written to that place."""
    root = directory.resolve()
    found = []
    for parent, folders, files in os.walk(root):
        if _OF_WANDB.fullmatch(Path(parent).name):  # of an earlier attempt: it holds a link to W&B's own log
            folders.clear()
            continue
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                found.append(f"{path.relative_to(root)} -> {os.readlink(path)}")
    return sorted(found)


def require_trust(entries: list[str], argument: str, trusted: bool) -> None:
    """Say what the author of a stored run or sweep decides, on the user's word.

    Args:
        argument: how the command line names the directory.

    Raises:
        UserError: there are such entries, and the user has not given their word.
    """
    if not entries:
        return
    listing = "; ".join(entries)
    if not trusted:
        raise UserError(
            f"{argument} asks for what can run code or write outside of it, as its author wants: {listing}. If you "
            f"trust its author in this, add {WORD}=true; an option that you give anew on the command line is not taken "
            "from there."
        )
    print(f"vlmexp: {WORD}=true: {argument} decides on {listing}", file=sys.stderr)
