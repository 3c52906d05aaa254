"""The open groups (`train`, `peft`, `model.model_kwargs`, `evaluation.generation`): options of a library's class.

Their names are checked against the installed classes, without importing them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmexp.bounds import Bounds
from vlmexp.checks.training import check_fit, check_names, check_ranges
from vlmexp.checks.values import DTYPES, check_bounds, check_choice, check_number, check_pattern
from vlmexp.config import PARTS, Config, PeftExtras, TrainExtras, library_options, peft_extras, train_extras
from vlmexp.errors import UserError, closest, shown
from vlmexp.signatures import (
    check_arguments,
    check_fields,
    check_name,
    class_fields,
    popped_names,
    returned_defaults,
)

SAMPLING_ORDERS = ("random", "group_by_length")
AUDITS = ("error", "warn", "off")
FITS = ("auto", "none")
CACHES = ("auto", "on", "off")
ON_DIVERGENCE = ("stop", "rewind")
RATES_OF_THEIR_OWN = ("reduce_lr_on_plateau", "greedy")  # schedules that follow a metric
OPTIMIZERS_WITH_OWN_GROUPS = ("galore", "apollo", "lomo", "adalomo")  # beginnings of names of train.optim
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
    "state_dict": "model.id",
    "config": "model.id",
}
GENERATION_CONFIG = ("transformers", "generation/configuration_utils.py", "GenerationConfig")
RESERVED_GENERATION = {
    "max_new_tokens": "evaluation.max_new_tokens",
    "max_length": "evaluation.max_new_tokens",
    "min_length": "evaluation.generation.min_new_tokens, which does not count the prompt,",
    "eos_token_id": "model.end_of_turn",
    "pad_token_id": "the tokenizer's own",
    "num_return_sequences": "one answer to each question",
    **dict.fromkeys(
        ("return_dict_in_generate", "output_scores", "output_logits", "output_attentions", "output_hidden_states"),
        "plain answers",
    ),
}
# What `generate` takes and what changes nothing where a prompt is continued.
IDLE_GENERATION = (
    "bos_token_id", "decoder_start_token_id", "forced_bos_token_id", "is_assistant", "num_assistant_tokens",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
    "assistant_ensemble_weight", "speculation_type",
)  # fmt: skip
# What transformers has moved to code on the Hub.
MOVED_GENERATION = (
    "low_memory", "penalty_alpha", "dola_layers", "diversity_penalty", "num_beam_groups", "constraints",
    "force_words_ids",
)  # fmt: skip
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")
GENERATION_BOUNDS = {
    **dict.fromkeys(("top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff"), Bounds(least=0, most=1)),
    **dict.fromkeys(
        ("top_k", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_new_tokens"), Bounds(least=0)
    ),
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "max_time"), Bounds(above=0)),
    **dict.fromkeys(("prompt_lookup_num_tokens", "max_matching_ngram_size"), Bounds(least=1)),
    "num_beams": Bounds(least=1, most=1024),
    "temperature": Bounds(least=0),  # 0 gets a sentence of its own where it is tried
}
FLAGS_GENERATION = ("renormalize_logits", "token_healing", "disable_compile", "use_mtp")
WHOLE_GENERATION = ("min_new_tokens", "prompt_lookup_num_tokens", "max_matching_ngram_size")  # beside those by default
# Of any of PEFT's classes; a rank above the sides of all matrices is none.
PEFT_BOUNDS = {
    **dict.fromkeys(("r", "init_r", "target_r"), Bounds(least=1, most=65536)),
    **dict.fromkeys(("lora_alpha", "alpha"), Bounds(above=0)),  # 0 would multiply all that is learnt by nothing
    **dict.fromkeys(("lora_dropout", "rank_dropout", "module_dropout", "adapter_dropout"), Bounds(least=0, below=1)),
}
_LISTS_OF_NAMES = ("target_modules", "exclude_modules", "modules_to_save", "target_parameters")
PEFT_PATTERNS = {"rank_pattern": "r", "alpha_pattern": "lora_alpha"}
DEVICES = re.compile(r"auto|balanced|balanced_low_0|sequential|cpu|cuda(:\d+)?")
QUANTIZED_TYPES = ("nf4", "fp4")


def check_open_groups(config: Config) -> None:
    """Refuse names that the library does not know, what a run decides itself, and values that fail later."""
    check_bounds(train_extras(config), "train.")
    check_bounds(peft_extras(config), "peft.")
    _check_loading(config)
    _check_generation(config)
    _check_train(config)
    _check_part_rates(config)
    _check_evaluations(config)
    _check_best_checkpoint(config)
    _check_tokens_per_batch(config)
    _check_peft(config)


def _check_loading(config: Config) -> None:
    device = config.model.device_map
    if device is not None and not DEVICES.fullmatch(device):
        raise UserError(
            f"model.device_map={shown(repr(device))} must be auto, cpu, cuda or one GPU such as cuda:0"
            f"{closest(device, ('auto', 'cpu', 'cuda'))}"
        )
    for group in ("model_kwargs", "processor_kwargs"):
        for name in RESERVED_MODEL_KWARGS.keys() & getattr(config.model, group).keys():
            raise UserError(
                f"model.{group}.{name} has an option of its own: use {RESERVED_MODEL_KWARGS[name]} instead."
            )


def _check_generation(config: Config) -> None:
    for name, value in config.evaluation.generation.items():
        if name in RESERVED_GENERATION:
            raise UserError(f"evaluation.generation.{name}: use {RESERVED_GENERATION[name]} instead.")
        if name in IDLE_GENERATION:
            raise UserError(f"evaluation.generation.{name}={value} changes no answer to a prompt: leave it out.")
        if name in MOVED_GENERATION:
            raise UserError(
                f"evaluation.generation.{name}={value} is code of the Hub since transformers 5, which is not run: "
                "leave it out."
            )
        known = {known for known in popped_names(*GENERATION_CONFIG) if not known.startswith("_")}
        known -= {"transformers_version", *IDLE_GENERATION, *MOVED_GENERATION, *RESERVED_GENERATION}
        check_name(f"evaluation.generation.{name}={value}", name, known, "GenerationConfig")
        if value is not None:
            _check_generated(name, value)


def _check_generated(name: str, value: Any) -> None:
    """The kind of a value of `evaluation.generation`, and its range."""
    default = returned_defaults(*GENERATION_CONFIG, "_get_default_generation_params").get(name)
    option, bounds = f"evaluation.generation.{name}", GENERATION_BOUNDS.get(name)
    if name == "guidance_scale" and value != 1:
        raise UserError(
            f"{option}={value} asks the model once more without its prompt, which transformers does for texts alone "
            "and not where there are images: leave it out."
        )
    is_list = isinstance(value, Sequence) and not isinstance(value, str)
    if name in TOKEN_LISTS and not (is_list and all(type(token) is int for token in value)):
        raise UserError(f"{option}={shown(repr(value))} must be a list of token ids, as in {option}=[1,2].")
    if isinstance(default, bool) or name in FLAGS_GENERATION:
        if not isinstance(value, bool) and name != "early_stopping":  # that may be "never"
            raise UserError(f"{option}={shown(repr(value))} must be true or false.")
        return
    is_whole = isinstance(default, int) or name in WHOLE_GENERATION
    if is_whole and (not isinstance(value, int) or isinstance(value, bool)):
        raise UserError(f"{option}={shown(repr(value))} must be a whole number.")
    if isinstance(default, float) or bounds:
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"{option}={shown(repr(value))} must be a number.")
        check_number(option, value, bounds or Bounds())


def _check_train(config: Config) -> None:
    check_fit(config.train, class_fields("transformers", "TrainingArguments"))
    check_fields("train", library_options(config.train, TrainExtras), "transformers", "TrainingArguments")
    check_names(config.train)
    check_choice("train.gradient_audit", train_extras(config).gradient_audit, AUDITS)
    check_choice("train.fit", train_extras(config).fit, FITS)
    check_choice("train.cache_vision_features", train_extras(config).cache_vision_features, CACHES)
    _check_divergence(config)
    check_ranges(config.train)
    order = config.train.get("train_sampling_strategy", "random")
    check_choice("train.train_sampling_strategy", order, SAMPLING_ORDERS)
    for name in ("logging_steps", "eval_steps", "save_steps", "warmup_steps"):
        value = config.train.get(name)
        if value is not None and value >= 1 and value != int(value):
            raise UserError(f"train.{name}={value} must be a whole number of steps, or a fraction of them below 1.")


def _check_divergence(config: Config) -> None:
    """What is done when a training diverges."""
    ours, schedule = train_extras(config), config.train.get("lr_scheduler_type")
    check_choice("train.on_divergence", ours.on_divergence, ON_DIVERGENCE)
    if ours.on_divergence == "rewind" and schedule in RATES_OF_THEIR_OWN:
        raise UserError(
            f"train.on_divergence=rewind lowers the learning rate, which train.lr_scheduler_type={schedule} sets by "
            "itself: choose another schedule, or train.on_divergence=stop."
        )


def _check_part_rates(config: Config) -> None:
    """Learning rates of single parts of the model."""
    ours = train_extras(config)
    for name, rate in (("vision", ours.vision_learning_rate), ("projector", ours.projector_learning_rate)):
        if rate is None:
            continue
        if rate <= 0:
            raise UserError(
                f"train.{name}_learning_rate={rate} must be positive; to freeze a part use peft.train_parts."
            )
        if name not in peft_extras(config).train_parts:
            raise UserError(f"train.{name}_learning_rate={rate}: peft.train_parts leaves the {name} part out; add it.")
        if str(config.train.get("optim")).startswith(OPTIMIZERS_WITH_OWN_GROUPS):
            raise UserError(
                f"train.{name}_learning_rate={rate}: train.optim={config.train['optim']} groups the weights itself and "
                "takes one learning rate for all; choose another optimizer, such as adamw_torch."
            )


def _check_evaluations(config: Config) -> None:
    """What needs evaluations during training."""
    ours = train_extras(config)
    if config.train.get("eval_strategy", "no") == "no":
        asked = {
            "eval_generation_examples": ours.eval_generation_examples,
            "early_stopping_patience": ours.early_stopping_patience,
            "metric_for_best_model": config.train.get("metric_for_best_model"),
        }
        for name, value in asked.items():
            if value:
                raise UserError(f"train.{name}={value} needs evaluations: set train.eval_strategy=steps or epoch.")


def _check_best_checkpoint(config: Config) -> None:
    """Where the best checkpoint is wanted, each must be evaluated."""
    train = config.train
    if not train.get("load_best_model_at_end", train.get("metric_for_best_model")):
        if train.get("greater_is_better") is not None:
            raise UserError(
                f"train.greater_is_better={train['greater_is_better']} is about the best checkpoint, which nothing "
                "asks for: name a metric with train.metric_for_best_model, or leave it out."
            )
        return
    evaluated, saved = train.get("eval_strategy", "no"), train.get("save_strategy", "steps")
    if evaluated == "no":
        raise UserError("train.load_best_model_at_end=true needs evaluations: set train.eval_strategy=steps or epoch.")
    if saved == "best":
        return
    if evaluated != saved:
        raise UserError(
            f"train.save_strategy={saved} and train.eval_strategy={evaluated} must be the same for the best checkpoint "
            "to be found: set one as the other."
        )
    every, save_every = train.get("eval_steps"), train.get("save_steps")
    if saved != "steps" or every is None or save_every is None:
        return
    times = save_every / every
    if (every < 1) != (save_every < 1) or abs(times - round(times)) > 1e-6:
        raise UserError(
            f"train.save_steps={save_every} must be a multiple of train.eval_steps={every}, both in steps or both as "
            "fractions: the best checkpoint is one that was evaluated."
        )


def _check_tokens_per_batch(config: Config) -> None:
    tokens = train_extras(config).tokens_per_batch
    if tokens is None:
        return
    if config.train.get("train_sampling_strategy") != "group_by_length":
        raise UserError(
            f"train.tokens_per_batch={tokens} needs train.train_sampling_strategy=group_by_length: its batches hold "
            "examples of like length."
        )
    if config.train.get("dataloader_drop_last"):
        raise UserError(
            f"train.tokens_per_batch={tokens} leaves no batch unfilled, so train.dataloader_drop_last=true has none to "
            "drop: leave it out."
        )


def _check_peft(config: Config) -> None:
    adapter, options = peft_extras(config), library_options(config.peft, PeftExtras)
    for part in adapter.train_parts:
        check_choice("peft.train_parts", part, PARTS)
    if not adapter.train_parts:
        raise UserError(f"peft.train_parts is empty, so nothing would be trained: name some of {', '.join(PARTS)}.")
    if adapter.quantization:
        _check_quantization(adapter.quantization)
    if adapter.config_class is not None:
        check_fields("peft", options, "peft", adapter.config_class)
        _check_adapter_numbers(options)
    elif options or adapter.quantization:
        extra = ", ".join(sorted(options) or ["quantization"])
        raise UserError(f"peft.{extra}: peft=none trains all weights and has no such option; choose peft=lora.")


def _check_adapter_numbers(options: Mapping[str, Any]) -> None:
    """Numbers that PEFT takes, and with which nothing, or something else, would be learnt."""
    given = [(f"peft.{name}", options.get(name), bounds) for name, bounds in PEFT_BOUNDS.items()]
    for pattern, name in PEFT_PATTERNS.items():
        given += [(f"peft.{pattern}.{k}", v, PEFT_BOUNDS[name]) for k, v in (options.get(pattern) or {}).items()]
    for option, value, bounds in given:
        if isinstance(value, bool) or not isinstance(value, int | float | None):
            raise UserError(f"{option}={shown(repr(value))} must be a number.")
        if value is not None:
            check_number(option, value, bounds)
    for name in _LISTS_OF_NAMES:
        for item in value if isinstance(value := options.get(name), list) else ():
            if not isinstance(item, str) or not item.strip():
                raise UserError(f"peft.{name}={shown(value)}: {item!r} is no name; write peft.{name}=[A,B].")
    targets = options.get("target_modules")
    if targets is not None and not targets:
        raise UserError(
            f"peft.target_modules={targets!r} names no module, so there is no place for an adapter: all-linear names "
            "all linear layers."
        )
    for name in ("target_modules", "exclude_modules"):
        if isinstance(regex := options.get(name), str):
            check_pattern(f"peft.{name}", regex)


def _check_quantization(values: Mapping[str, Any]) -> None:
    check_arguments("peft.quantization", values, "transformers", "utils/quantization_config.py", "BitsAndBytesConfig")
    for name, choices in (("bnb_4bit_quant_type", QUANTIZED_TYPES), ("bnb_4bit_compute_dtype", DTYPES)):
        if name in values:
            check_choice(f"peft.quantization.{name}", values[name], choices)
    if values.get("load_in_4bit", False) == values.get("load_in_8bit", False):
        raise UserError("peft.quantization: set one of load_in_4bit and load_in_8bit to true, or choose peft=lora.")
