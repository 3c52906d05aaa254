"""Every field of TrainingArguments works, as shown on a VLM, or is refused with its reason before anything loads."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from tests.training.conftest import logged
from vlmexp.checks.training import RENAMED, SET_BY_RUN, UNFIT, check_fit
from vlmexp.errors import UserError
from vlmexp.training import stage
from vlmexp.training.optimizers import check_optimizer

HERE, LOSS, TRAIN, RANKS = "test_arguments", "test_loss", "test_train", "test_divergence_ranks"
# field -> the test file that shows what it does
WORKS = {
    "per_device_train_batch_size": HERE, "num_train_epochs": HERE, "max_steps": HERE, "learning_rate": HERE,
    "lr_scheduler_type": HERE, "lr_scheduler_kwargs": HERE, "warmup_steps": HERE, "optim": HERE, "optim_args": HERE,
    "weight_decay": HERE, "adam_beta1": HERE, "adam_beta2": HERE, "adam_epsilon": HERE,
    "optim_target_modules": HERE, "gradient_accumulation_steps": LOSS, "average_tokens_across_devices": RANKS,
    "max_grad_norm": HERE, "label_smoothing_factor": LOSS, "bf16": TRAIN, "fp16": HERE, "tf32": HERE,
    "activation_checkpointing": HERE, "activation_checkpointing_kwargs": HERE, "gradient_checkpointing": TRAIN,
    "gradient_checkpointing_kwargs": TRAIN, "torch_compile": HERE, "torch_compile_backend": HERE,
    "torch_compile_mode": HERE, "neftune_noise_alpha": HERE, "torch_empty_cache_steps": HERE,
    "logging_strategy": HERE, "logging_steps": HERE, "logging_first_step": HERE, "log_on_each_node": HERE,
    "include_num_input_tokens_seen": HERE, "log_level": HERE, "log_level_replica": HERE, "disable_tqdm": HERE,
    "eval_strategy": HERE, "eval_steps": HERE, "eval_delay": HERE, "per_device_eval_batch_size": LOSS,
    "eval_on_start": HERE, "save_only_model": TRAIN, "save_strategy": HERE, "save_steps": HERE,
    "save_total_limit": HERE, "load_best_model_at_end": HERE, "metric_for_best_model": HERE,
    "greater_is_better": HERE, "full_determinism": HERE, "dataloader_drop_last": HERE,
    "dataloader_num_workers": HERE, "dataloader_pin_memory": HERE, "dataloader_persistent_workers": HERE,
    "dataloader_prefetch_factor": HERE, "dataloader_multiprocessing_context": HERE,
    "train_sampling_strategy": HERE, "ddp_find_unused_parameters": RANKS, "ddp_bucket_cap_mb": RANKS,
    "ddp_broadcast_buffers": RANKS, "ddp_static_graph": RANKS,
}  # fmt: skip


def test_every_field_is_in_one_table():
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    tables = [*WORKS, *SET_BY_RUN, *UNFIT]
    assert sorted(fields - set(tables)) == [], "new fields of TrainingArguments: do they work, or what is the reason?"
    assert sorted(set(tables) - fields) == []
    assert len(tables) == len(set(tables))
    assert not fields & RENAMED.keys()


@pytest.mark.parametrize("file", sorted(set(WORKS.values())))
def test_what_works_is_shown(file):
    text = Path(__file__).with_name(f"{file}.py").read_text()
    shown = text.partition("# fmt: skip\n\n\ndef")[2] if file == HERE else text  # without the tables above
    assert [name for name, where in WORKS.items() if where == file and name not in shown] == []


def test_what_does_not_fit_is_refused_with_its_reason(compose):
    fields = {field.name for field in dataclasses.fields(TrainingArguments)}
    for name, (fits, reason) in UNFIT.items():
        check_fit({name: fits}, fields)
        check_fit({name: None}, fields)
        with pytest.raises(UserError) as told:
            check_fit({name: not fits if isinstance(fits, bool) else "other"}, fields)
        assert str(told.value).startswith(f"train.{name}=")
        assert str(told.value).endswith(f"{reason}.")
    for name in SET_BY_RUN:
        with pytest.raises(UserError, match=rf"train\.{name} is set by the run itself: use .* instead\.$"):
            check_fit({name: None}, fields)
    for name in RENAMED:
        with pytest.raises(UserError, match=rf"train\.{name}=1: transformers has no such option any more; use "):
            check_fit({name: 1}, fields)
    for name in ("train.use_liger_kernel=true", "train.project=x", "train.group_by_length=true"):
        with pytest.raises(UserError):
            compose(name)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_steps=0", "trains nothing"),
        ("train.learning_rate=nan", "finite number"),
        ("train.learning_rate=inf", "finite"),
        ("train.label_smoothing_factor=1.0", "less than 1"),
        ("train.label_smoothing_factor=-0.1", "at least 0"),
        ("train.optim_target_modules=[q_proj]", "peft.target_modules"),
        ("train.on_divergence=rewnd", "did you mean 'rewind'"),
        ("train.most_rewinds=0", "at least 1"),
    ],
)
def test_values_that_would_train_nothing_or_something_else(compose, override, message):
    with pytest.raises(UserError, match=message):
        compose(override)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["lr_scheduler_type=cosine_with_min_lr"], "cosine_with_min_lr cannot be built .* min_lr"),
        (["lr_scheduler_type=warmup_stable_decay"], "num_decay_steps"),
        (["lr_scheduler_type=polynomial", "lr_scheduler_kwargs={powr: 2}"], "powr"),
        (["lr_scheduler_type=constant", "lr_scheduler_kwargs={power: 2}"], "takes none"),
        (["optim=galore_adamw", "optim_target_modules=all-linear"], "galore_adamw cannot be built: .*galore_torch"),
        (["optim=apollo_adamw", "optim_target_modules=[q_proj]"], "apollo_torch"),
        (["optim=schedule_free_adamw"], "schedulefree"),
        (["optim=stable_adamw"], "torch-optimi"),
        (["optim=grokadamw"], "grokadamw"),
        (["optim=lomo"], "lomo"),
        (["optim=adamw_torch_4bit"], "torchao"),
        (["optim=sgd", "optim_args='momentum'"], "sgd cannot be built"),
        (["optim=sgd", "optim_args='momentm=0.9'"], "momentm=0.9 changes nothing about train.optim=sgd"),
        (["optim_args='momentum=0.9'"], "momentum=0.9 changes nothing"),
    ],
)
def test_optimizer_and_schedule_are_tried_before_anything_loads(compose, tmp_path, overrides, message):
    config = compose("stage=train", *(f"train.{text.replace(chr(39), chr(34))}" for text in overrides))
    with pytest.raises(UserError, match=message):
        stage.check_training(config)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop"])
def test_optimizers_that_are_here_pass(tmp_path, optim):
    check_optimizer(TrainingArguments(output_dir=str(tmp_path), optim=optim))


def moved(before, after) -> torch.Tensor:
    return torch.cat([(after[name] - before[name]).flatten() for name in before])


def test_what_changes_no_result(trained, capsys):
    """Loading, logging, compiling and checkpointing activations: the losses stay the same."""
    short = ["max_steps=4", "save_strategy=no", "eval_strategy=no"]
    _, base, _, weight = trained(*short)
    assert [step for step, _ in logged(base)] == [1, 2, 3, 4]
    assert "4/4" in capsys.readouterr().err
    trainer, lines, _, same = trained(
        *short, "dataloader_num_workers=1", "dataloader_pin_memory=true", "dataloader_persistent_workers=true",
        "dataloader_prefetch_factor=3", "dataloader_multiprocessing_context=fork", "torch_empty_cache_steps=1",
        "log_level=info", "log_level_replica=error", "log_on_each_node=false", "disable_tqdm=true", "tf32=false",
        "include_num_input_tokens_seen=non_padding", "full_determinism=true", "logging_first_step=true",
        "logging_steps=2", "fp16=true",
    )  # fmt: skip
    torch.use_deterministic_algorithms(False)
    assert "4/4" not in capsys.readouterr().err
    assert trainer.args.get_process_log_level() == 20
    assert [step for step, _ in logged(lines)] == [1, 2, 4]
    assert logged(lines)[0][1] == logged(base)[0][1]
    assert all(torch.equal(same[name], weight[name]) for name in weight)
    seen = [number for _, number in logged(lines, "num_input_tokens_seen")]
    _, lines, _, _ = trained(*short, "include_num_input_tokens_seen=all", "logging_steps=4")
    assert 0 < seen[0] < seen[1] < seen[2] <= lines[-1]["num_input_tokens_seen"]

    for options in (
        ["activation_checkpointing=true", "activation_checkpointing_kwargs={use_reentrant: false}"],
        ["torch_compile=true", "torch_compile_backend=eager", "torch_compile_mode=default"],
    ):
        trainer, lines, _, _ = trained("max_steps=2", *short[1:], *options)
        assert trainer.args.activation_checkpointing == ("checkpointing" in options[0])
        assert trainer.args.torch_compile == ("compile" in options[0])
        assert [loss for _, loss in logged(lines)] == pytest.approx([loss for _, loss in logged(base)][:2], rel=1e-4)


def test_the_optimizer(trained):
    one = ["max_steps=1", "save_strategy=no", "eval_strategy=no", "lr_scheduler_type=constant"]
    # Gradient descent with a rate of 1 moves the weights by their gradient, which is clipped.
    _, lines, before, after = trained(*one, "optim=sgd", "learning_rate=1.0", "max_grad_norm=0.01")
    assert moved(before, after).norm() == pytest.approx(0.01, rel=1e-3)
    assert lines[-1]["grad_norm"] > 0.1
    _, lines, before, after = trained(*one, "optim=sgd", "learning_rate=1.0", "max_grad_norm=0")
    assert moved(before, after).norm() == pytest.approx(lines[-1]["grad_norm"], rel=1e-4)
    # Adam without memory moves every weight that has a gradient by the rate.
    adam = ["adam_beta1=0.0", "adam_beta2=0.0", "adam_epsilon=1e-20"]
    _, _, before, after = trained(*one, *adam, "learning_rate=0.5")
    steps = moved(before, after).abs()
    assert steps[steps > 0].numpy() == pytest.approx(0.5, rel=1e-4)
    # Decay takes its share of every weight: LoRA's A, which has no gradient yet, becomes 0.9 of itself.
    _, _, before, after = trained(*one, "learning_rate=0.5", "weight_decay=0.2")
    name = next(name for name in before if "lora_A" in name)
    assert torch.allclose(after[name], 0.9 * before[name])
    # Momentum: the second step is half of the first one and its own.
    trainer, *_ = trained(*one, "optim=sgd", 'optim_args="momentum=0.5"')
    assert {group["momentum"] for group in trainer.optimizer.param_groups} == {0.5}


def test_the_schedule(trained):
    quiet = ["save_strategy=no", "eval_strategy=no", "learning_rate=0.001"]
    _, lines, _, _ = trained(
        *quiet, "max_steps=5", "warmup_steps=1", "lr_scheduler_type=polynomial",
        "lr_scheduler_kwargs={power: 2, lr_end: 0.0}",
    )  # fmt: skip
    assert [rate for _, rate in logged(lines, "learning_rate")] == pytest.approx(
        [0, 0.001, 0.001 * (3 / 4) ** 2, 0.001 * (2 / 4) ** 2, 0.001 * (1 / 4) ** 2]
    )
    # 39 examples: 10 batches of 4 an epoch, 9 of them full.
    _, lines, _, _ = trained(
        *quiet, "num_train_epochs=1.5", "per_device_train_batch_size=4", "dataloader_drop_last=true",
        "train_sampling_strategy=random", "warmup_steps=0.5", "logging_strategy=epoch",
    )  # fmt: skip
    assert [step for step, _ in logged(lines)] == [9, 14]
    assert logged(lines, "learning_rate")[0][1] > 0.0005


def test_noise_on_embeddings_is_for_training_only(trained):
    short = ["max_steps=1", "save_strategy=no", "eval_on_start=true", "eval_steps=1"]
    _, base, _, _ = trained(*short)
    _, hardly, _, _ = trained(*short, "neftune_noise_alpha=1e-9")
    _, noisy, _, _ = trained(*short, "neftune_noise_alpha=30")
    assert [step for step, _ in logged(base, "eval_loss")] == [0, 1]
    assert logged(hardly)[0][1] == pytest.approx(logged(base)[0][1], rel=1e-5)
    assert abs(logged(noisy)[0][1] - logged(base)[0][1]) > 1e-3
    assert logged(noisy, "eval_loss")[0] == logged(base, "eval_loss")[0]


def test_when_it_evaluates_and_saves(trained):
    trainer, lines, _, _ = trained(
        "num_train_epochs=3", "eval_strategy=epoch", "eval_delay=2", "save_strategy=epoch", "save_total_limit=2"
    )
    assert [step for step, _ in logged(lines, "eval_loss")] == [20, 30]
    assert sorted(path.name for path in Path(trainer.args.output_dir).iterdir()) == ["checkpoint-20", "checkpoint-30"]
    two = ["max_steps=4", "learning_rate=0.3", "eval_steps=2", "save_steps=2", "metric_for_best_model=loss"]
    for options, best in (([], min), (["greater_is_better=true"], max), (["save_strategy=best"], min)):
        trainer, lines, _, after = trained(*two, "load_best_model_at_end=true", *options)
        losses = logged(lines, "eval_loss")
        assert [step for step, _ in losses] == [2, 4]
        step, loss = best(losses, key=lambda line: line[1])
        assert (trainer.state.best_global_step, trainer.state.best_metric) == (step, loss)
        saved = load_file(Path(trainer.args.output_dir, f"checkpoint-{step}", "adapter_model.safetensors"))
        assert sum(map(torch.Tensor.sum, after.values())) == pytest.approx(
            float(sum(map(torch.Tensor.sum, saved.values())))
        )
