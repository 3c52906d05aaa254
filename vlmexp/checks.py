"""From a composed config to a checked one: every value that would fail later is refused here, in a sentence.

Keys of the open groups are checked against the installed classes, without importing them.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from vlmexp.config import (
    MEDIA,
    PARTS,
    SPLITS,
    Compare,
    Config,
    Evaluation,
    PeftExtras,
    Tracking,
    TrainExtras,
    explain,
    library_options,
    peft_extras,
    required_roles,
    train_extras,
)
from vlmexp.errors import UserError, closest
from vlmexp.signatures import check_arguments, check_fields, check_name, popped_names

DTYPES = ("bfloat16", "float16", "float32")
OVERLONG = ("error", "drop", "shorten_text", "shrink_image")
MESSAGE_ROLES = ("system", "user", "assistant", "conversation")
SHARE_IMAGES = ("auto", "always", "never")
ANSWERS = ("generate", "rank")
BLINDS = ("shuffle", "blank", "none")
PROMPT_STYLES = ("chat", "prefix")
RESIZE_MODES = ("keep_aspect", "crop", "stretch")
VIDEO_LIBRARIES = ("auto", "decord", "cv2", "pyav", "torchcodec")
SAMPLING_STRATEGIES = ("uniform", "fps")
ON_BAD_SAMPLE = ("error", "skip")
TRAIN_ANSWERS = ("most_common", "sampled")
SAMPLING_ORDERS = ("random", "group_by_length")
AUDITS = ("error", "warn", "off")
WANDB_MODES = ("online", "offline", "disabled")
TRACKERS = ("none", "tensorboard", "wandb")
PUSHED = ("merged", "adapter")
_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)
OPTIMIZERS_WITH_OWN_GROUPS = ("galore", "apollo", "lomo", "adalomo")  # beginnings of names of train.optim
EVALUATIONS = ("finetuned", "base")
FORMATS = ("table", "md", "csv", "json")
# TrainingArguments that a run decides itself, and what to set instead.
RESERVED_TRAIN = {
    "output_dir": "hydra.run.dir",
    "seed": "seed",
    "data_seed": "seed",
    "report_to": "tracking.report_to",
    "run_name": "tracking.name",
    "resume_from_checkpoint": "run=<directory>",
    "hub_token": "the environment variable HF_TOKEN",
    "push_to_hub": "export.push_to_hub",
    "hub_model_id": "export.push_to_hub",
    "hub_private_repo": "export.private",
    "hub_strategy": "export.push_to_hub",
    "hub_always_push": "export.push_to_hub",
    "hub_revision": "export.push_to_hub",
    "enable_jit_checkpoint": "a plain SIGTERM, at which every run saves its state and ends as preempted,",
}
# What TrainingArguments takes without a word, and what then fails or trains nothing.
LEAST_TRAIN = {
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "learning_rate": 0, "num_train_epochs": 0, "weight_decay": 0, "max_grad_norm": 0, "warmup_steps": 0,
    "dataloader_num_workers": 0,
}  # fmt: skip
# Arguments of from_pretrained that have an option of their own.
RESERVED_MODEL_KWARGS = {
    "revision": "model.revision",
    "trust_remote_code": "model.trust_remote_code",
    "dtype": "model.dtype",
    "torch_dtype": "model.dtype",
    "device_map": "model.device_map",
    "attn_implementation": "model.attn_implementation",
    "quantization_config": "peft.quantization",
    "load_in_4bit": "peft=qlora",
    "load_in_8bit": "peft.quantization",
    "token": "the environment variable HF_TOKEN",
}
GENERATION_CONFIG = ("transformers", "generation/configuration_utils.py", "GenerationConfig")
RESERVED_GENERATION = {
    "max_new_tokens": "evaluation.max_new_tokens",
    "eos_token_id": "model.end_of_turn",
    "pad_token_id": "the tokenizer's own",
    "num_return_sequences": "one answer to each question",
    "return_dict_in_generate": "plain answers",
}
QUANTIZED_TYPES = ("nf4", "fp4")


def checked(composed: DictConfig) -> Config:
    """Turn a composed config into a `Config`, or raise a UserError that names the option, its value and a way out."""
    try:
        merged = OmegaConf.structured(Config)
        # As plain values: between two configs of the schema's own type, OmegaConf lets unknown keys pass.
        merged.merge_with(OmegaConf.create(OmegaConf.to_container(composed)))
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    assert isinstance(config, Config)
    _check_choices(config)
    _check_numbers(config)
    _check_together(config)
    _check_compare(config.compare)
    _check_evaluation(config.evaluation)
    _check_media(config)
    _check_tracking(config.tracking)
    _check_open_leaves(config)
    return config


def _check_choices(config: Config) -> None:
    frames = config.collator.video_processing.frame_extraction
    for option, value, choices in (
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.prompt_style", config.model.prompt_style, PROMPT_STYLES),
        *(("model.media", medium, MEDIA) for medium in config.model.media),
        ("collator.overlong", config.collator.overlong, OVERLONG),
        ("collator.share_images", config.collator.share_images, SHARE_IMAGES),
        ("tracking.report_to", config.tracking.report_to, TRACKERS),
        *(("tracking.mode", mode, WANDB_MODES) for mode in [config.tracking.mode] if mode is not None),
        ("export.push", config.export.push, PUSHED),
        ("collator.image_processing.resize_mode", config.collator.image_processing.resize_mode, RESIZE_MODES),
        ("collator.video_processing.frame_extraction.library", frames.library, VIDEO_LIBRARIES),
        ("collator.video_processing.frame_extraction.sampling_strategy", frames.sampling_strategy, SAMPLING_STRATEGIES),
        ("dataset.on_bad_sample", config.dataset.on_bad_sample, ON_BAD_SAMPLE),
        ("dataset.train_answer", config.dataset.train_answer, TRAIN_ANSWERS),
        ("evaluation.split", config.evaluation.split, SPLITS),
        ("preview.split", config.preview.split, SPLITS),
        ("evaluation.blind", config.evaluation.blind, BLINDS),
        ("evaluation.answers", config.evaluation.answers, ANSWERS),
        *(("dataset.splits", name, SPLITS) for name in config.dataset.splits),
        *(("dataset.max_examples", name, SPLITS) for name in config.dataset.max_examples),
        *(("collator.messages.role", message.role, MESSAGE_ROLES) for message in config.collator.messages),
        *(
            ("collator.messages.type", part.type, ("text", *MEDIA))
            for m in config.collator.messages
            for part in m.content
        ),
    ):
        _check_choice(option, value, choices)


def _check_numbers(config: Config) -> None:
    frames = config.collator.video_processing.frame_extraction
    for option, number, least in (
        ("collator.max_length", config.collator.max_length, 1),
        ("collator.image_processing.max_size", config.collator.image_processing.max_size, 1),
        ("collator.video_processing.frame_extraction.num_frames", frames.num_frames, 1),
        ("evaluation.batch_size", config.evaluation.batch_size, 1),
        ("evaluation.max_examples", config.evaluation.max_examples, 1),
        ("evaluation.blind_examples", config.evaluation.blind_examples, 1),
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens, 1),
        ("evaluation.max_choices", config.evaluation.max_choices, 2),
        ("evaluation.invariance_examples", config.evaluation.invariance_examples, 0),
        ("dataset.max_new_tokens", config.dataset.max_new_tokens, 1),
        ("export.parity_examples", config.export.parity_examples, 0),
        ("preview.examples", config.preview.examples, 1),
        ("preview.rows", config.preview.rows, 1),
        ("threads", config.threads, 1),
        ("seed", config.seed, 0),
        ("tracking.predictions", config.tracking.predictions, 0),
        *((f"dataset.max_examples.{name}", number, 1) for name, number in config.dataset.max_examples.items()),
    ):
        if number is not None and number < least:
            raise UserError(f"{option}={number} must be at least {least}.")
    duration = config.collator.video_processing.file_processing.max_duration
    for option, amount in (("frame_extraction.fps", frames.fps), ("file_processing.max_duration", duration)):
        if amount is not None and amount <= 0:
            raise UserError(f"collator.video_processing.{option}={amount} must be more than 0.")
    for option, fraction in (
        ("dataset.max_bad_share", config.dataset.max_bad_share),
        ("dataset.validation_fraction", config.dataset.validation_fraction),
        ("dataset.test_fraction", config.dataset.test_fraction),
    ):
        if not 0 <= fraction < 1:
            raise UserError(f"{option}={fraction} must be at least 0 and less than 1.")


def _check_together(config: Config) -> None:
    """What no single option tells."""
    if config.export.push_to_hub is not None and not _REPOSITORY.fullmatch(config.export.push_to_hub):
        raise UserError(
            f"export.push_to_hub={config.export.push_to_hub!r} must be ORG/NAME, each of letters, digits, '-', '_' and "
            "'.', with a letter or digit at both ends."
        )
    if config.collator.label_masking.ignore_index != -100:
        raise UserError(
            f"collator.label_masking.ignore_index={config.collator.label_masking.ignore_index} must be -100: it is the "
            "only label that the loss of transformers' models leaves out."
        )
    if config.dataset.options.get("streaming"):
        raise UserError(
            f"dataset.options.streaming={config.dataset.options['streaming']}: data sets are not streamed. They are "
            "prepared on disk once and mapped from there, so memory does not grow with them: leave the option out, and "
            "set paths.data to a disk that has room for them."
        )
    has_conversations = bool(config.dataset.columns.get("messages"))
    for role in dict.fromkeys([*([] if has_conversations else ["answer"]), *required_roles(config)]):
        if not config.dataset.columns.get(role):
            raise UserError(f"dataset.columns.{role} is not set: name the column that holds each example's {role}.")
    _check_messages(config, has_conversations)
    if config.collator.share_images == "always" and not config.collator.label_masking.mask_input_tokens:
        raise UserError(
            "collator.share_images=always needs collator.label_masking.mask_input_tokens=true: "
            "a prompt that several questions share cannot carry a loss for each of them."
        )


def _check_messages(config: Config, has_conversations: bool) -> None:
    roles = [message.role for message in config.collator.messages]
    if not roles or roles[-1] not in ("assistant", "conversation"):
        raise UserError(
            "collator.messages must end with the assistant's message, which is what the model learns to say."
        )
    if "conversation" in roles[:-1] or (roles[-1] == "conversation" and set(roles[:-1]) - {"system"}):
        raise UserError(
            f"collator.messages have the roles {', '.join(roles)}: only a system message may stand beside the data "
            "set's conversation, and before it."
        )
    if has_conversations and config.model.prompt_style == "prefix":
        raise UserError(
            f"dataset={config.dataset.name} holds conversations, and {config.model.id} (model.prompt_style=prefix) "
            "takes one question and one answer: choose a model with a chat template."
        )
    if has_conversations != (roles[-1] == "conversation"):
        raise UserError(
            f"dataset.columns.messages={config.dataset.columns['messages']} holds conversations, and collator.messages "
            "have no place for them: choose collator=chat."
            if has_conversations
            else "collator.messages end with the data set's conversation, and it has none: set "
            "dataset.columns.messages to the column that holds them, or choose collator=vqa."
        )


def _check_media(config: Config) -> None:
    """What the data set has, the collator shows and the model takes must fit together."""
    shown = dataclasses.asdict(config.collator.data_processing)
    present = [medium for medium in MEDIA if config.dataset.columns.get(medium)]
    used = [medium for medium in present if shown[f"{medium}_data"]]
    if present and not used:
        raise UserError(
            f"dataset={config.dataset.name} has only {' and '.join(present)} data, and "
            f"collator.data_processing.{present[0]}_data is false: switch it on"
            + (", as collator=video does." if present[0] == "video" else ".")
        )
    parts = {part.type for message in config.collator.messages[:-1] for part in message.content}
    for medium in used:
        if medium not in config.model.media:
            raise UserError(
                f"collator.data_processing.{medium}_data=true: {config.model.id} takes "
                f"{' and '.join(config.model.media) or 'no media'} (model.media) and no {medium}. "
                "Choose another model, or switch it off."
            )
        if medium not in parts and not config.dataset.columns.get("messages"):
            raise UserError(
                f"collator.messages show no {medium}, and the data set has some: add the part {{type: {medium}}} (as "
                f"collator={'video' if medium == 'video' else 'vqa'} does), or set "
                f"collator.data_processing.{medium}_data=false."
            )


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UserError(f"{option}={value!r} must be one of {', '.join(choices)}{closest(value, choices)}")


def _check_compare(compare: Compare) -> None:
    _check_choice("compare.format", compare.format, FORMATS)
    if compare.evaluation is not None:
        _check_choice("compare.evaluation", compare.evaluation, EVALUATIONS)
    for option, number in (("examples", compare.examples), ("report_examples", compare.report_examples)):
        if number < 0:
            raise UserError(f"compare.{option}={number} must be at least 0.")
    for option, named, counts in (("diff", compare.diff, (2,)), ("paired", compare.paired, (1, 2))):
        if named and len(named) not in counts:
            raise UserError(f"compare.{option} names {len(named)} runs: write compare.{option}=[A,B].")
    views = [name for name in ("best", "failed", "diff", "paired") if getattr(compare, name)]
    views += ["html"] if compare.html is not None else []
    if len(views) > 1:
        raise UserError(f"compare.{' and compare.'.join(views)} are different views: ask for one of them.")
    if compare.best and (compare.format != "table" or compare.output is not None):
        raise UserError("compare.best prints two lines for a script: leave compare.format and compare.output out.")


def _check_evaluation(evaluation: Evaluation) -> None:
    """What belongs to one of the two ways to an answer."""
    if evaluation.answers == "generate":
        for name, value in (("choices", evaluation.choices), ("rank_per_token", evaluation.rank_per_token)):
            if value:
                raise UserError(
                    f"evaluation.{name}={value} is for ranking, and evaluation.answers is 'generate': set "
                    "evaluation.answers=rank, or leave it out."
                )
        return
    if evaluation.generation:
        raise UserError(
            f"evaluation.generation.{next(iter(evaluation.generation))}: evaluation.answers=rank generates nothing; "
            "leave it out."
        )
    if evaluation.choices is not None and len(set(evaluation.choices)) < max(2, len(evaluation.choices)):
        raise UserError(f"evaluation.choices={evaluation.choices} must be at least two different answers.")


def _check_tracking(tracking: Tracking) -> None:
    """A tracker that is not there, or that would ask for a key in the middle of a run."""
    if tracking.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracking=tensorboard needs a package: pip install 'vlmexp[tensorboard]'.")
    if tracking.report_to == "wandb" and tracking.mode == "online" and not _has_wandb_login():
        raise UserError(
            "tracking.mode=online needs an account: set WANDB_API_KEY (in the environment or .env), call "
            "`wandb login` once, or leave tracking.mode out to track offline."
        )


def _has_wandb_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    return Path(os.environ.get("NETRC", "~/.netrc")).expanduser().is_file()  # where `wandb login` writes


def _check_open_leaves(config: Config) -> None:
    for name, instead in RESERVED_TRAIN.items():
        if name in config.train:
            raise UserError(f"train.{name} is set by the run itself: use {instead} instead.")
    for group in ("model_kwargs", "processor_kwargs"):
        for name in RESERVED_MODEL_KWARGS.keys() & getattr(config.model, group).keys():
            raise UserError(
                f"model.{group}.{name} has an option of its own: use {RESERVED_MODEL_KWARGS[name]} instead."
            )
    for name in ("fsdp", "deepspeed"):
        if config.train.get(name):
            raise UserError(
                f"train.{name}={config.train[name]}: weights are not sharded here, each process holds the whole model "
                "(accelerate shards on GPUs only, where this has not been run). "
                "Leave it out; for less memory choose train=low_memory or peft.quantization."
            )
    for name, value in config.evaluation.generation.items():
        if name in RESERVED_GENERATION:
            raise UserError(f"evaluation.generation.{name}: use {RESERVED_GENERATION[name]} instead.")
        check_name(f"evaluation.generation.{name}={value}", name, popped_names(*GENERATION_CONFIG), "GenerationConfig")
    check_fields("train", library_options(config.train, TrainExtras), "transformers", "TrainingArguments")
    ours = train_extras(config)
    _check_choice("train.gradient_audit", ours.gradient_audit, AUDITS)
    _check_tokens_per_batch(config, ours.tokens_per_batch)
    for name, rate in (("vision", ours.vision_learning_rate), ("projector", ours.projector_learning_rate)):
        if rate is not None and rate <= 0:
            raise UserError(
                f"train.{name}_learning_rate={rate} must be positive; to freeze a part use peft.train_parts."
            )
        if rate is not None and name not in peft_extras(config).train_parts:
            raise UserError(f"train.{name}_learning_rate={rate}: peft.train_parts leaves the {name} part out; add it.")
        if rate is not None and str(config.train.get("optim")).startswith(OPTIMIZERS_WITH_OWN_GROUPS):
            raise UserError(
                f"train.{name}_learning_rate={rate}: train.optim={config.train['optim']} groups the weights itself and "
                "takes one learning rate for all; choose another optimizer, such as adamw_torch."
            )
    _check_evaluations(config)
    for name, least in LEAST_TRAIN.items():
        value = config.train.get(name)
        if value is not None and value < least:
            raise UserError(f"train.{name}={value} must be at least {least}.")
    if config.train.get("num_train_epochs") == 0 and config.train.get("max_steps", -1) < 1:
        raise UserError("train.num_train_epochs=0 trains nothing: set it above 0, or train.max_steps.")
    order = config.train.get("train_sampling_strategy", "random")
    _check_choice("train.train_sampling_strategy", order, SAMPLING_ORDERS)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        value = config.train.get(name)
        if value is not None and (value <= 0 or (value >= 1 and value != int(value))):
            raise UserError(f"train.{name}={value} must be a whole number of steps, or a fraction of them below 1.")
    adapter, options = peft_extras(config), library_options(config.peft, PeftExtras)
    for part in adapter.train_parts:
        _check_choice("peft.train_parts", part, PARTS)
    if not adapter.train_parts:
        raise UserError(f"peft.train_parts is empty, so nothing would be trained: name some of {', '.join(PARTS)}.")
    if adapter.quantization:
        _check_quantization(adapter.quantization)
    if adapter.config_class is not None:
        check_fields("peft", options, "peft", adapter.config_class)
        if options.get("r") is not None and options["r"] < 1:
            raise UserError(f"peft.r={options['r']} must be at least 1: it is the rank of the adapter's matrices.")
        if not 0 <= (dropout := options.get("lora_dropout") or 0) < 1:
            raise UserError(f"peft.lora_dropout={dropout} must be at least 0 and less than 1.")
    elif options or adapter.quantization:
        extra = ", ".join(sorted(options) or ["quantization"])
        raise UserError(f"peft.{extra}: peft=none trains all weights and has no such option; choose peft=lora.")


def _check_evaluations(config: Config) -> None:
    """What needs evaluations during training."""
    ours = train_extras(config)
    for name, number, least in (
        ("eval_generation_examples", ours.eval_generation_examples, 0),
        ("early_stopping_patience", ours.early_stopping_patience, 1),
    ):
        if number is not None and number < least:
            raise UserError(f"train.{name}={number} must be at least {least}.")
    if config.train.get("eval_strategy", "no") == "no":
        asked = {
            "eval_generation_examples": ours.eval_generation_examples,
            "early_stopping_patience": ours.early_stopping_patience,
            "metric_for_best_model": config.train.get("metric_for_best_model"),
        }
        for name, value in asked.items():
            if value:
                raise UserError(f"train.{name}={value} needs evaluations: set train.eval_strategy=steps or epoch.")


def _check_tokens_per_batch(config: Config, tokens: int | None) -> None:
    if tokens is None:
        return
    if tokens < 1:
        raise UserError(f"train.tokens_per_batch={tokens} must be at least 1.")
    if config.train.get("train_sampling_strategy") != "group_by_length":
        raise UserError(
            f"train.tokens_per_batch={tokens} needs train.train_sampling_strategy=group_by_length: its batches hold "
            "examples of like length."
        )
    if config.train.get("auto_find_batch_size"):
        raise UserError(
            f"train.tokens_per_batch={tokens} and train.auto_find_batch_size=true both decide how large batches are: "
            "leave one of them out."
        )


def _check_quantization(values: Mapping[str, Any]) -> None:
    check_arguments("peft.quantization", values, "transformers", "utils/quantization_config.py", "BitsAndBytesConfig")
    for name, choices in (("bnb_4bit_quant_type", QUANTIZED_TYPES), ("bnb_4bit_compute_dtype", DTYPES)):
        if name in values:
            _check_choice(f"peft.quantization.{name}", values[name], choices)
    if values.get("load_in_4bit", False) == values.get("load_in_8bit", False):
        raise UserError("peft.quantization: set one of load_in_4bit and load_in_8bit to true, or choose peft=lora.")
