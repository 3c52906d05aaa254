"""The fields of TrainingArguments that do not fit: which, and what to do instead. All others work."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from vlmexp.bounds import Bounds
from vlmexp.checks.values import check_choice, check_number
from vlmexp.errors import UserError, shown
from vlmexp.signatures import enumerated

# What a run decides itself, and what to set instead.
SET_BY_RUN = {
    "output_dir": "hydra.run.dir",
    "seed": "seed",
    "data_seed": "seed",
    "report_to": "tracking.report_to",
    "run_name": "tracking.name",
    "project": "tracking.project",
    "trackio_space_id": "tracking.report_to",
    "trackio_bucket_id": "tracking.report_to",
    "trackio_static_space_id": "tracking.report_to",
    "resume_from_checkpoint": "run=<directory>",
    "hub_token": "the environment variable HF_TOKEN",
    "push_to_hub": "export.push_to_hub",
    "hub_model_id": "export.push_to_hub",
    "hub_private_repo": "export.private",
    "hub_strategy": "export.push_to_hub",
    "hub_always_push": "export.push_to_hub",
    "hub_revision": "export.push_to_hub",
    "enable_jit_checkpoint": "a plain SIGTERM, at which every run saves its state and ends as preempted,",
    "do_train": "stage=train",
    "do_eval": "stage=eval_finetuned",
    "do_predict": "stage=eval_finetuned",
    "local_rank": "torchrun, accelerate launch or SLURM, which number the processes,",
    "label_names": "nothing, as the collator names the labels,",
}
_ONE_MODEL = (
    "weights are not sharded here, each process holds the whole model (accelerate shards on GPUs only, where this has "
    "not been run). Leave it out; for less memory choose train=low_memory or peft.quantization"
)
_NO_PREDICTIONS = (
    "an evaluation within a training keeps a loss and scores answers, never logits; for metrics of answers set "
    "train.eval_generation_examples"
)
_GROUP_IS_THERE = "the processes have found each other before the training begins, with six hours of patience"
# name -> (the one value that fits, why no other does)
UNFIT: dict[str, tuple[Any, str]] = {
    "accelerator_config": (None, "batches are laid out for the processes by the run itself, so that a resume is exact"),
    "auto_find_batch_size": (
        False,
        "it would change the batch in the middle of a run; the memory preflight names the largest that fits, before "
        "the first step",
    ),
    "batch_eval_metrics": (False, _NO_PREDICTIONS),
    "bf16_full_eval": (False, "an evaluation within a training computes as the training does; set train.bf16"),
    "dataloader_in_order": (True, "the order of the batches would be left to chance, and no resume could repeat it"),
    "ddp_backend": (None, _GROUP_IS_THERE),
    "ddp_timeout": (None, _GROUP_IS_THERE),
    "debug": ("", "what is not finite is found in every step, with its examples; see train.on_divergence"),
    "deepspeed": (None, _ONE_MODEL),
    "eval_accumulation_steps": (None, _NO_PREDICTIONS),
    "eval_do_concat_batches": (True, _NO_PREDICTIONS),
    "eval_use_gather_object": (False, _NO_PREDICTIONS),
    "fp16_full_eval": (False, "an evaluation within a training computes as the training does; set train.fp16"),
    "fsdp": (None, _ONE_MODEL),
    "fsdp_config": (None, _ONE_MODEL),
    "ignore_data_skip": (False, "a resumed training would see examples twice in an epoch, and others not at all"),
    "include_for_metrics": ([], _NO_PREDICTIONS),
    "length_column_name": ("length", "lengths are those of the tokens, counted when the data are prepared"),
    "liger_kernel_config": (None, "Liger's kernels are not used; see train.use_liger_kernel"),
    "logging_nan_inf_filter": (False, "a loss that is not a number would be logged as the mean of those before it"),
    "parallelism_config": (None, _ONE_MODEL),
    "prediction_loss_only": (True, _NO_PREDICTIONS),
    "remove_unused_columns": (False, "examples have no columns and the model needs all that its collator returns"),
    "restore_callback_states_from_checkpoint": (
        False,
        "a resume goes on exactly without it, and with it the control of a training that was told to end would be back",
    ),
    "save_on_each_node": (False, "only rank 0 writes; the run directory must be on a disk that all nodes share"),
    "skip_memory_metrics": (True, "metrics.jsonl has the memory of every logged step (memory_gib)"),
    "use_cache": (False, "a training needs no cache of keys and values"),
    "use_cpu": (False, "all stages run on one device; hide the GPUs with CUDA_VISIBLE_DEVICES= before the command"),
    "use_liger_kernel": (
        False,
        "Liger's kernels for GPUs have not been run with this trainer's shared prefixes and its token averages; leave "
        "it out",
    ),
}  # fmt: skip
# Names of before transformers 5, and how they are written now.
RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "group_by_length": "train_sampling_strategy=group_by_length",
    "warmup_ratio": "warmup_steps, below 1 a share of all steps",
    "no_cuda": "nothing; hide the GPUs with CUDA_VISIBLE_DEVICES= before the command",
    "logging_dir": "tracking=tensorboard, which writes into the run directory",
    "save_safetensors": "nothing; weights are always saved so",
    "overwrite_output_dir": "nothing; every run has a directory of its own",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "include_tokens_per_second": "nothing; metrics.jsonl always has tokens_per_s",
    "torchdynamo": "torch_compile_backend",
}
# What TrainingArguments takes without a word, and what then fails or trains nothing.
BOUNDS = {
    **dict.fromkeys(
        ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
         "dataloader_prefetch_factor", "save_total_limit", "torch_empty_cache_steps", "ddp_bucket_cap_mb"),
        Bounds(least=1),
    ),
    **dict.fromkeys(
        ("learning_rate", "weight_decay", "max_grad_norm", "warmup_steps", "eval_delay", "neftune_noise_alpha"),
        Bounds(least=0),
    ),
    **dict.fromkeys(("adam_beta1", "adam_beta2", "label_smoothing_factor"), Bounds(least=0, below=1)),
    **dict.fromkeys(("logging_steps", "eval_steps", "save_steps"), Bounds(above=0)),
    "adam_epsilon": Bounds(above=0),  # 0 / 0 for a weight without a gradient
    "num_train_epochs": Bounds(least=0, most=1_000_000),
    "max_steps": Bounds(least=-1),  # -1: num_train_epochs counts
    "dataloader_num_workers": Bounds(least=0, most=1024),
}  # fmt: skip
# Fields that hold a name of an enumeration: where that stands.
NAMES = {
    "optim": ("training_args.py", "OptimizerNames"),
    "lr_scheduler_type": ("trainer_utils.py", "SchedulerType"),
    "eval_strategy": ("trainer_utils.py", "IntervalStrategy"),
    "logging_strategy": ("trainer_utils.py", "IntervalStrategy"),
    "save_strategy": ("trainer_utils.py", "SaveStrategy"),
}
MAPPINGS = ("lr_scheduler_kwargs", "gradient_checkpointing_kwargs", "activation_checkpointing_kwargs")
LOG_LEVELS = ("detail", "debug", "info", "warning", "error", "critical", "passive")
START_METHODS = ("fork", "spawn", "forkserver")
# Of torch.utils.checkpoint.checkpoint, as far as a text or a number can say it.
CHECKPOINTING = ("use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
_LOW_RANK = ("galore", "apollo")  # beginnings of names of optimizers that take optim_target_modules


def check_fit(train: Mapping[str, Any], fields: Collection[str]) -> None:
    """Refuse fields of TrainingArguments, or values of theirs, that do not fit; `fields` are those there are."""
    for name, instead in SET_BY_RUN.items():
        if name in train:
            raise UserError(f"train.{name} is set by the run itself: use {instead} instead.")
    for name, instead in RENAMED.items():
        if name in train and name not in fields:
            raise UserError(f"train.{name}={train[name]}: transformers has no such option any more; use {instead}.")
    for name, (fits, reason) in UNFIT.items():
        value = train.get(name, fits)
        if value is not None and value != fits and (value or fits):
            raise UserError(f"train.{name}={value}: {reason}.")


def check_names(train: Mapping[str, Any]) -> None:
    """Refuse names that none of the library's enumerations has, and what cannot be asked for together."""
    for name, (module, enumeration) in NAMES.items():
        if train.get(name) is not None:
            check_choice(f"train.{name}", train[name], enumerated("transformers", module, enumeration))
    for name, choices in (
        ("log_level", LOG_LEVELS),
        ("log_level_replica", LOG_LEVELS),
        ("torch_compile_mode", COMPILE_MODES),
        ("dataloader_multiprocessing_context", START_METHODS),
    ):
        if train.get(name) is not None:
            check_choice(f"train.{name}", train[name], choices)
    for name in MAPPINGS:
        if isinstance(value := train.get(name), str) and not value.startswith("{"):
            raise UserError(f"train.{name}={shown(repr(value))} must be options with their values: {{NAME: VALUE}}.")
    if isinstance(backend := train.get("torch_compile_backend"), str):
        known = [name.lower() for name in enumerated("accelerate", "utils/dataclasses.py", "DynamoBackend")]
        check_choice("train.torch_compile_backend", backend.lower(), known)
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        for option in value if isinstance(value := train.get(name), Mapping) else ():
            check_choice(f"train.{name}", option, CHECKPOINTING)
    if train.get("bf16") and train.get("fp16"):
        raise UserError("train.bf16=true and train.fp16=true are two precisions: set one of them to false.")


def check_ranges(train: Mapping[str, Any]) -> None:
    """Refuse numbers that would fail later, or train nothing or something else."""
    for name, bounds in BOUNDS.items():
        if (value := train.get(name)) is not None:
            check_number(f"train.{name}", value, bounds)
    if train.get("max_steps") == 0:
        raise UserError("train.max_steps=0 trains nothing: set it above 0, or leave it out for train.num_train_epochs.")
    if train.get("num_train_epochs") == 0 and train.get("max_steps", -1) < 1:
        raise UserError("train.num_train_epochs=0 trains nothing: set it above 0, or train.max_steps.")
    modules, optimizer = train.get("optim_target_modules"), train.get("optim", "adamw_torch")
    if modules is not None and not str(optimizer).startswith(_LOW_RANK):
        raise UserError(
            f"train.optim_target_modules={modules} is for train.optim=galore_adamw and apollo_adamw, and {optimizer} "
            "has no use for it: leave it out; which weights are trained is peft.target_modules."
        )
