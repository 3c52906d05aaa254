"""Which options change a result. Every option is in one of the two lists: a new one has to be put there."""

from __future__ import annotations

import dataclasses

import pytest

from vlmexp.config import Config, PeftExtras, TrainExtras
from vlmexp.data.options import CHANGES_NO_DATA
from vlmexp.errors import UserError
from vlmexp.files import write_json
from vlmexp.runs import NOT_IN_KEY, Run, affecting_results, config_key, differences, read_config
from vlmexp.signatures import class_fields

# Groups of which all options are alike.
BESIDE_GROUPS = {"tracking", "export", "preview", "compare", "paths", "members"}
CHANGING_GROUPS = {"model", "collator", "peft", "predict"}
BESIDE = """
stage run trust_run threads
dataset.on_bad_sample dataset.max_bad_share dataset.decode_memory_mib dataset.decode_timeout_s dataset.max_file_gib
dataset.submission dataset.submission_id
evaluation.batch_size evaluation.invariance_examples evaluation.suite
train.gradient_audit train.memory_preflight train.fit train.profile train.on_divergence train.most_rewinds
train.cache_vision_features
train.per_device_eval_batch_size train.eval_accumulation_steps train.eval_use_gather_object train.eval_do_concat_batches
train.activation_checkpointing train.gradient_checkpointing train.torch_empty_cache_steps
train.dataloader_num_workers train.dataloader_pin_memory train.dataloader_persistent_workers
train.dataloader_prefetch_factor train.dataloader_multiprocessing_context
train.save_total_limit train.save_on_each_node
train.logging_strategy train.logging_steps train.logging_first_step train.logging_nan_inf_filter
train.log_level train.log_level_replica train.log_on_each_node train.disable_tqdm
train.include_num_input_tokens_seen train.skip_memory_metrics train.debug
train.project train.trackio_space_id train.trackio_bucket_id train.trackio_static_space_id
train.ddp_backend train.ddp_bucket_cap_mb train.ddp_find_unused_parameters train.ddp_timeout
train.do_train train.do_eval train.do_predict
""".split()
CHANGING = """
seed image video question
dataset.name dataset.version dataset.source dataset.options dataset.splits dataset.validation_fraction
dataset.test_fraction dataset.split_seed dataset.max_examples dataset.columns dataset.required dataset.train_answer
dataset.metadata dataset.metrics dataset.max_new_tokens dataset.prompt dataset.instruction
dataset.open_instruction dataset.kept dataset.on_duplicates dataset.convert dataset.box_form
evaluation.split evaluation.max_examples evaluation.metrics evaluation.max_new_tokens evaluation.blind
evaluation.blind_examples evaluation.generation evaluation.answers evaluation.choices evaluation.max_choices
evaluation.rank_per_token evaluation.reasoning_tags
train.vision_learning_rate train.projector_learning_rate train.eval_generation_examples train.early_stopping_patience
train.tokens_per_batch
train.per_device_train_batch_size train.num_train_epochs train.max_steps train.learning_rate train.lr_scheduler_type
train.lr_scheduler_kwargs train.warmup_steps train.optim train.optim_args train.weight_decay train.adam_beta1
train.adam_beta2 train.adam_epsilon train.optim_target_modules train.gradient_accumulation_steps
train.average_tokens_across_devices train.max_grad_norm train.label_smoothing_factor train.bf16 train.fp16
train.bf16_full_eval train.fp16_full_eval train.tf32 train.activation_checkpointing_kwargs
train.gradient_checkpointing_kwargs train.torch_compile train.torch_compile_backend train.torch_compile_mode
train.use_liger_kernel train.liger_kernel_config train.use_cache train.neftune_noise_alpha train.auto_find_batch_size
train.eval_strategy train.eval_steps train.eval_delay train.prediction_loss_only train.eval_on_start
train.include_for_metrics train.batch_eval_metrics train.save_only_model train.save_strategy train.save_steps
train.load_best_model_at_end train.metric_for_best_model train.greater_is_better train.ignore_data_skip
train.restore_callback_states_from_checkpoint train.full_determinism train.use_cpu train.accelerator_config
train.parallelism_config train.dataloader_drop_last train.dataloader_in_order train.remove_unused_columns
train.label_names train.train_sampling_strategy train.length_column_name train.ddp_broadcast_buffers
train.ddp_static_graph train.fsdp train.fsdp_config train.deepspeed
""".split()
# Fields of TrainingArguments that are no options: the run sets them, or they are of another day.
NO_OPTIONS = """
output_dir report_to run_name enable_jit_checkpoint push_to_hub hub_token hub_private_repo hub_model_id hub_strategy
hub_always_push hub_revision seed data_seed resume_from_checkpoint local_rank
""".split()


def options() -> list[str]:
    """All that there are, of the groups that are not alike as a whole."""
    found = []
    for field in dataclasses.fields(Config):
        if field.name in BESIDE_GROUPS | CHANGING_GROUPS | {"train"}:
            continue
        inner = field.default_factory() if field.default_factory is not dataclasses.MISSING else None
        is_group = dataclasses.is_dataclass(inner)
        found += [f"{field.name}.{item.name}" for item in dataclasses.fields(inner)] if is_group else [field.name]
    names = [field.name for field in dataclasses.fields(TrainExtras)]
    names += class_fields("transformers", "TrainingArguments")
    return found + [f"train.{name}" for name in names if name not in NO_OPTIONS]


def test_every_option_is_known_to_change_a_result_or_not():
    known = [*BESIDE, *CHANGING]
    assert len(set(known)) == len(known)
    assert sorted(set(options()) - set(known)) == [], "put new options into one of the lists"
    assert sorted(set(known) - set(options())) == [], "these options are gone"
    groups = {field.name for field in dataclasses.fields(Config)}
    assert groups == BESIDE_GROUPS | CHANGING_GROUPS | {name.partition(".")[0] for name in known}


def test_options_that_change_no_data_change_no_result():
    start = "dataset.options."
    assert {name.removeprefix(start) for name in NOT_IN_KEY if name.startswith(start)} == set(CHANGES_NO_DATA)


def changed(values: dict, option: str) -> dict:
    group, _, name = option.partition(".")
    return values | {group: {**values[group], name: "other"} if name else "other"}


def test_the_key_counts_what_changes_a_result_and_nothing_else(compose):
    values = dataclasses.asdict(compose())
    key = config_key(values)
    for option in [*BESIDE, "dataset.options.download", "evaluation.batch_size", *(f"{g}.x" for g in BESIDE_GROUPS)]:
        other = {**values, "dataset": values["dataset"] | {"options": {"download": False}}}
        other = other if option == "dataset.options.download" else changed(values, option)
        assert config_key(other) == key, option
        assert differences(values, other) == {}, option
    for option in [*CHANGING, *(f"{group}.x" for group in CHANGING_GROUPS), "peft.r", "model.id"]:
        other = changed(values, option)
        assert config_key(other) != key, option
        assert list(differences(values, other)), option
    assert {field.name for field in dataclasses.fields(PeftExtras)} <= values["peft"].keys()


def test_what_answers_depend_on_leaves_the_batch_out(compose):
    few, many = (affecting_results(dataclasses.asdict(compose(f"evaluation.batch_size={n}"))) for n in (1, 8))
    assert few["evaluation"] == many["evaluation"]
    assert "batch_size" not in few["evaluation"]
    assert few["evaluation"]["max_choices"] == 100


def test_a_run_is_continued_with_other_options_that_change_no_result(compose, tmp_path):
    with pytest.raises(MemoryError), Run.open(tmp_path, compose(), ["seed=0"]):
        raise MemoryError
    lower = ["evaluation.batch_size=4", "train.dataloader_num_workers=0", "train.gradient_audit=off", "threads=1"]
    with Run.open(tmp_path, compose(*lower), ["seed=0", *lower]) as run:
        pass
    assert run.record["status"] == "done"
    assert run.record["overrides"] == ["seed=0", *lower]  # what a further attempt begins with
    assert read_config(tmp_path)["evaluation"]["batch_size"] == 4


def test_a_configuration_that_is_cut_short_is_not_read_as_another_one(compose, tmp_path):
    with Run.open(tmp_path, compose(), []):
        pass
    path = tmp_path / "config.resolved.yaml"
    content = path.read_bytes()
    middle = content.index(b"\n", len(content) // 2)
    for damaged in (b"", content[:1], content[:middle], content[:-1], content[:middle] + bytes(200)):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=r"config.resolved.yaml is damaged \(.*\): restore it from a copy\."):
            read_config(tmp_path)


def test_a_run_of_a_version_that_counted_other_options_is_continued(compose, tmp_path):
    with Run.open(tmp_path, compose(), []) as run:
        pass
    write_json(tmp_path / "run.json", run.record | {"key": "of another time"})
    with Run.open(tmp_path, compose(), []) as run:
        pass
    assert run.record["key"] == config_key(dataclasses.asdict(compose()))
