"""stage=train: data, collator, model, adapter, Trainer, save, export."""

from __future__ import annotations

import gc
import random
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import (
    PreTrainedModel,
    ProcessorMixin,
    ProgressCallback,
    TrainerState,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback
from transformers.utils import logging as transformers_logging

from vlmexp import distributed
from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import KEEPING_ALL, fit
from vlmexp.collator.media import media_key
from vlmexp.config import Config, peft_extras, train_extras
from vlmexp.data.prepare import Prepared
from vlmexp.data.stage import limit_decoding, load_split, prepared_data
from vlmexp.errors import UserError
from vlmexp.evaluation.answers import answer_limit, check_decoding
from vlmexp.evaluation.vision_cache import FOLDER, pictures_of, use_stored_features
from vlmexp.export.stage import check_export, export_model, keep_answers, publish
from vlmexp.models.adapter import attach, trainable_parameters, try_to_attach
from vlmexp.models.adapter_kinds import moves_base
from vlmexp.models.adapter_start import Start, begin_with, load_start, save_start, start_of
from vlmexp.models.checkpoint import file_sizes
from vlmexp.models.encoders import Encoder
from vlmexp.models.export import public_id, save_adapter
from vlmexp.models.fit import check_forward
from vlmexp.models.gradients import demand_no_idle_gradients
from vlmexp.models.load import ModelSource, check_model, commit, device_name, empty_model, load_model
from vlmexp.parts import (
    adapter_config,
    build_collator,
    model_source,
    module_patterns,
    set_threads,
    shares_images,
    tries_sharing,
)
from vlmexp.report import print_next, print_paths
from vlmexp.runs import Run
from vlmexp.suites import Member, watched, watched_name
from vlmexp.tracking.opening import tracked
from vlmexp.training.answers import AnswerScores
from vlmexp.training.arguments import part_learning_rates, training_arguments
from vlmexp.training.audit import GradientAudit
from vlmexp.training.best import answered_examples
from vlmexp.training.callbacks import (
    MetricsFile,
    ProgressBar,
    RoomOnDisk,
    StopWhenTold,
    StopWithoutBetter,
    peak_memory_gib,
    restore_metrics,
)
from vlmexp.training.checkpoints import is_last, missing_state, newest_complete
from vlmexp.training.continuing import (
    EpochsByExamples,
    keep_steps,
    note_other_machine,
    require_same_base,
    same_base,
)
from vlmexp.training.cuts import StepCut
from vlmexp.training.data import (
    TrainingData,
    decide_layout,
    examples_after,
    examples_per_step,
    train_sampler,
    training_data,
)
from vlmexp.training.divergence import Diverged
from vlmexp.training.flops import ArithmeticUse
from vlmexp.training.layout import PLAIN, Layout
from vlmexp.training.learning_rates import require_parts
from vlmexp.training.optimizers import check_optimizer
from vlmexp.training.preflight import MemoryPreflight, TooLarge
from vlmexp.training.profiling import StepProfile
from vlmexp.training.rewinding import LOWERED, rewind_or_stop, rewinds
from vlmexp.training.schedule import ScheduleNotes, require_steps
from vlmexp.training.trainer import VlmTrainer


def train(config: Config, run: Run) -> dict[str, Any]:
    """Fine-tune, from the newest complete checkpoint if there is one; write `model/` and `deployment_model/`."""
    check_training(config)
    check_export(config)
    train_model(config, run)
    export_model(config, run)
    publish(config, run)
    print_paths({"adapter": run.path("model"), "merged": run.path("deployment_model"), "run": run.directory})
    print_next(run.directory)
    done = run.stage_result("train") or {}
    return {name: done[name] for name in ("steps", "loss", "eval_loss", "best_metric") if name in done}


def check_training(config: Config) -> None:
    """Build what the libraries check themselves, so that a refused option is known before hours of other work."""
    adapter_config(config)
    questions_to_answer(config)
    check_optimizer(training_arguments(config, Path("checkpoints"), lambda _: None, has_validation=True))


def check_adapter(config: Config) -> None:
    """Place the adapter in a model without weights; a UserError if that cannot be, or nothing would be trained."""
    source, patterns = model_source(config), module_patterns(config)
    model = empty_model(source)
    if model is None:
        return
    fits_itself = train_extras(config).fit == "auto"  # without checkpointing where that is not to be had
    if config.train.get("gradient_checkpointing") and not fits_itself and not model.supports_gradient_checkpointing:
        raise UserError(
            f"train.gradient_checkpointing=true: {type(model).__name__} has no such thing; leave it out, or choose "
            "another model."
        )
    parts = {patterns.part_of(name) for name, _ in model.named_modules()}
    for part in ("vision", "projector"):
        if (pattern := getattr(config.model.modules, part)) is not None and part not in parts:
            raise UserError(f"model.modules.{part}={pattern!r} fits no module of {type(model).__name__}: leave it out.")
    adapted = try_to_attach(model, adapter_config(config), peft_extras(config).train_parts, patterns)
    if adapted is not None:
        require_parts(adapted, part_learning_rates(config), patterns.part_of)


def check_steps(config: Config, run: Run) -> None:
    """Raise a UserError if the train split, which the run has prepared, is too small for a step."""
    counts, limit = run.record["data"]["counts"], config.dataset.max_examples.get("train")
    arguments = _arguments(config, run, has_validation=bool(counts["validation"]))
    require_steps(min(counts["train"], limit or counts["train"]), arguments)


def _arguments(config: Config, run: Run, has_validation: bool) -> TrainingArguments:
    return training_arguments(config, run.path("checkpoints"), run.note_fallback, has_validation)


def train_model(config: Config, run: Run) -> None:
    """Fine-tune and write `model/`, unless this run has done so."""
    if run.stage_result("train") is None:
        with tracked(config, run), run.stage("train") as result:
            result |= _train(config, run)


def _train(config: Config, run: Run) -> dict[str, Any]:
    set_threads(config)
    set_seed(config.seed)
    source = same_base(run, model_source(config))
    processor = check_model(source, run.note_fallback)
    check_decoding(config, processor)
    prepared = prepared_data(config, run)
    arguments = _arguments(config, run, has_validation=bool(prepared.manifest["counts"]["validation"]))
    checkpoint = newest_checkpoint(run, arguments)
    note_other_machine(run, arguments)
    whole_batches = train_extras(config).tokens_per_batch is not None or bool(arguments.dataloader_drop_last)
    begun_with = keep_steps(run, arguments, checkpoint, whole_batches)
    collator = build_collator(config, processor)
    data = training_data(config, run, prepared, collator)
    require_steps(len(data.splits["train"]), arguments)
    cut = StepCut(run, arguments, whole_batches, finds_cut(config, arguments), has_begun=checkpoint is not None)
    scores = answer_scores(config, run, processor) if arguments.eval_strategy != "no" else None
    limit_decoding(config)  # again as the data to train on say
    while True:
        cut.apply()
        try:
            return _attempt(config, run, source, processor, collator, data, arguments, scores, begun_with, checkpoint)
        except Diverged as diverged:
            extras = train_extras(config)
            rewind_or_stop(run, diverged, extras.on_divergence == "rewind", extras.most_rewinds)
        except TooLarge as found:
            cut.lower(found)
        except (RuntimeError, MemoryError) as error:
            cut.lower_within(error)
        checkpoint = newest_checkpoint(run, arguments)
        gc.collect()  # the model that diverged or did not fit, which its Trainer holds in a circle
        torch.cuda.empty_cache()
        set_seed(config.seed)


def finds_cut(config: Config, arguments: TrainingArguments) -> bool:
    """Whether the memory preflight decides how a step is cut into batches."""
    extras = train_extras(config)
    return extras.fit == "auto" and extras.memory_preflight and not arguments.auto_find_batch_size


def _attempt(
    config: Config,
    run: Run,
    source: ModelSource,
    processor: ProcessorMixin,
    collator: Collator,
    data: TrainingData,
    arguments: TrainingArguments,
    scores: AnswerScores | None,
    begun_with: int,
    checkpoint: Path | None,
) -> dict[str, Any]:
    """From the model as it is loaded, or from a checkpoint, to `model/`; raises Diverged."""
    collator.features = None  # those of an attempt before go with its model
    model = model_to_train(config, run, source, processor, collator.prompts([data.splits["train"][0]]))
    start = adapter_start(config, run, model)
    checkpointing: Any = arguments.activation_checkpointing_kwargs or {}
    demand_no_idle_gradients(model, bool(checkpointing.get("use_reentrant", True)))
    layout = decide_layout(config, run, model, collator, data, arguments)
    collator.share_images = layout.shared
    answering = [scores.collator] if scores and not config.evaluation.generation else []  # as in the evaluations
    keep_features(config, run, model, [collator, *answering], data, arguments)
    trainer = build_trainer(config, run, model, collator, data, arguments, scores, begun_with, layout)

    run.forget_metrics_after(int(checkpoint.name.rpartition("-")[2]) if checkpoint else 0)
    if checkpoint and run.is_main:
        restore_metrics(run, checkpoint)
    if checkpoint and is_last(checkpoint):
        trainer.restore_finished(checkpoint)
    else:
        if checkpoint and (missing := missing_state(checkpoint)):
            run.note_fallback(
                f"{checkpoint.name} holds no state of {', '.join(missing)}: that begins anew, and the result is not "
                "that of an undisturbed training."
            )
        with run.interruption.deferred():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)

    if trainer.state.global_step == 0:
        raise UserError("The training made no step, so there is no model to keep: it needs more examples.")
    trainer.require_finite_weights()
    # In the precision that it is loaded in again, and not in that of the training.
    trained = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
    trained.config.use_cache = True
    if run.is_main:
        keep_answers(config, run, trained, collator)
        save_adapter(trained, processor, run.path("model"), public_id(source), start)
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    eval_losses = [line["eval_loss"] for line in trainer.state.log_history if "eval_loss" in line]
    return {
        "steps": trainer.state.global_step,
        "epochs": round(trainer.state.epoch or 0.0, 4),
        "examples": len(data.splits["train"]),
        **({"loss": losses[-1]} if losses else {}),
        **({"eval_loss": eval_losses[-1], "eval_examples": len(data.splits["validation"])} if eval_losses else {}),
        **({"eval_answers": last_answers(trainer.state, scores)} if scores else {}),
        **best_of(trainer.state),
        "files": file_sizes(run.path("model")) if run.is_main else {},
        "resumed_from": checkpoint.name if checkpoint else None,
        "peak_memory_gib": peak_memory_gib(),
    }


def newest_checkpoint(run: Run, arguments: TrainingArguments) -> Path | None:
    """The newest whole checkpoint, the same on all ranks; those that are not taken are recorded."""
    folder, needs_best = run.path("checkpoints"), arguments.load_best_model_at_end
    found = newest_complete(folder, run.note_fallback, needs_best) if run.is_main else None
    return distributed.gathered(found)[0]


def model_to_train(
    config: Config, run: Run, source: ModelSource, processor: ProcessorMixin, batch: dict[str, torch.Tensor]
) -> PreTrainedModel | PeftModel:
    """The model with its adapter, tried on a batch of prompts and described in run.json."""
    patterns = module_patterns(config)
    base_fingerprint = require_same_base(run, source)
    base = load_model(source, run.note_fallback, config.seed)
    check_forward(source.id, base, processor, batch)
    model = attach(base, adapter_config(config), peft_extras(config).train_parts, patterns)
    require_parts(model, part_learning_rates(config), patterns.part_of)
    trainable, total = trainable_parameters(model)
    run.update(
        model={
            "id": config.model.id,
            "commit": commit(source),
            "fingerprint": base_fingerprint,
            "class": type(base).__name__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": device_name(model),
            "trainable_parameters": trainable,
            "parameters": total,
        }
    )
    return model


def adapter_start(config: Config, run: Run, model: PreTrainedModel | PeftModel) -> Start | None:
    """What the adapter takes out of the base weights: that of the run's first attempt; None if it takes nothing."""
    if not moves_base(config.peft) or not isinstance(model, PeftModel):
        return None
    path = run.path("checkpoints", "adapter_start.safetensors")
    if distributed.gathered(path.exists())[0]:
        begin_with(model, load_start(path))
    elif run.is_main:
        save_start(start_of(model), path)
    return start_of(model)


def keep_features(
    config: Config,
    run: Run,
    model: PreTrainedModel | PeftModel,
    collators: list[Collator],
    data: TrainingData,
    arguments: TrainingArguments,
) -> None:
    """Have a frozen vision tower look at every picture once, if that is wanted and possible; run.json tells."""
    pictures = {split: pictures_of(fitted, data.keys[split]) for split, fitted in data.splits.items()}
    count, sets = len(data.splits["train"]), len(pictures["train"].examples)
    epochs = float(arguments.num_train_epochs)
    if arguments.max_steps > 0:
        epochs = arguments.max_steps * examples_per_step(arguments) / count
    precision = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    with run.interruption.deferred():
        about = use_stored_features(
            model,
            lambda: Encoder(model, module_patterns(config)),
            collators,
            pictures["train"] + pictures["validation"] if arguments.eval_strategy != "no" else pictures["train"],
            epochs if collators[0].share_images else epochs * count / max(1, sets),
            train_extras(config).cache_vision_features,
            Path(config.paths.data).expanduser() / FOLDER,
            precision,
            run.note_fallback,
            run.interruption.check,
        )
    run.update(vision_features={**run.record.get("vision_features", {}), "train": about})


def build_trainer(
    config: Config,
    run: Run,
    model: PreTrainedModel | PeftModel,
    collator: Collator,
    data: TrainingData,
    arguments: TrainingArguments,
    scores: AnswerScores | None,
    begun_with: int,
    layout: Layout = PLAIN,
) -> VlmTrainer:
    """The Trainer with our order of examples, checks and records.

    Args:
        begun_with: how many processes the run's first attempt had.
    """
    train, part_of = data.splits["train"], module_patterns(config).part_of
    sampler = train_sampler(config, run, train, data.keys["train"], collator, arguments, begun_with, layout.packed)
    trainer = VlmTrainer(
        model=model,
        args=arguments,
        data_collator=collator,
        train_dataset=train,
        eval_dataset=data.splits.get("validation"),
        train_sampler=sampler,
        learning_rates=part_learning_rates(config),
        rate_factor=LOWERED ** rewinds(run),
        part_of=part_of,
        score_answers=scores,
        packed=layout.packed,
        callbacks=[StopWhenTold(run), RoomOnDisk(run)],
    )
    extras = train_extras(config)
    seen = examples_after(sampler, arguments)
    a_step = seen(1) if extras.tokens_per_batch else examples_per_step(arguments)
    trainer.add_callback(ScheduleNotes(run.update, len(train), a_step, arguments.max_steps > 0))
    keys = {split: found if collator.share_images else None for split, found in data.keys.items()}
    if extras.memory_preflight:
        rows = {split: (fitted, keys[split]) for split, fitted in data.splits.items()}
        trainer.add_callback(MemoryPreflight(trainer, sampler, rows["train"], rows.get("validation"), run.update))
        if "arithmetic" not in run.record:
            trainer.add_callback(ArithmeticUse(trainer, train, keys["train"], run.update))
    if extras.profile is not None:
        trainer.add_callback(StepProfile(extras.profile, run.path("profile")))
    if extras.gradient_audit != "off":
        trainer.add_callback(GradientAudit(extras.gradient_audit, part_of, run.update))
    if extras.early_stopping_patience is not None:
        trainer.add_callback(StopWithoutBetter(extras.early_stopping_patience))
    trainer.add_callback(EpochsByExamples(seen, sampler.examples_per_epoch))
    trainer.add_callback(MetricsFile(run, seen, trainer.throughput))
    best = (arguments.metric_for_best_model or "loss").removeprefix("eval_")
    trainer.add_callback(ProgressBar(scores.names[0] if scores and scores.names and best == "loss" else best))
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    transformers_logging.disable_progress_bar()  # its bars for reading and writing weights would cut ours to pieces
    return trainer


def questions_to_answer(config: Config) -> int:
    """How many questions each evaluation answers; a UserError if nothing measures `train.metric_for_best_model`."""
    answering, wanted = watched(config)
    metrics = answering.evaluation.metrics or answering.dataset.metrics
    return answered_examples(wanted, metrics, train_extras(config).eval_generation_examples)


def answer_scores(config: Config, run: Run, processor: ProcessorMixin) -> AnswerScores | None:
    """What answers a fixed random sample of the validation split at each evaluation, if that is asked for.

    Of the run's own data set, unless `train.metric_for_best_model` names another.
    """
    wanted = questions_to_answer(config)
    if not wanted:
        return None
    best, name = config.train.get("metric_for_best_model") or "loss", watched_name(config)
    part = Member(run, name, config) if name else run
    config, _ = watched(config)
    with part.about():
        prepared, collator = prepared_data(config, part), build_collator(config, processor)
        split = watched_split(config, part, prepared)
        examples = load_split(config, prepared, split)
    count = min(wanted, len(examples))
    chosen = sorted(random.Random(config.dataset.split_seed).sample(range(len(examples)), count))
    # As in the evaluation stages: one that is left out would flatter the score.
    overlong = KEEPING_ALL.get(config.collator.overlong, config.collator.overlong)
    sample = [examples[index] for index in chosen]
    limit, share = config.collator.max_length, float(config.dataset.on_bad_sample == "skip")
    fitted = fit(collator, sample, limit, overlong, with_answer=False, refused_share=share)
    keys = [str(media_key(example) or index) for index, example in enumerate(fitted)]
    scores = AnswerScores(
        collator,
        fitted,
        config.evaluation.metrics or config.dataset.metrics,
        config.evaluation.batch_size,
        answer_limit(config, part, prepared, collator, split).tokens,
        config.evaluation.generation,
        shares_images(config, collator, keys, with_loss=False),
        config.evaluation.reasoning_tags,
        part.name,
        tries_sharing(config),
        config.collator.packing != "never",
    )
    if (best := best.removeprefix("eval_")) not in ("loss", *scores.names):
        raise UserError(
            f"train.metric_for_best_model={best} has no value here: the accepted answers of the {split} split have "
            "too few words for it. Choose another metric."
        )
    return scores


def watched_split(config: Config, part: Run, prepared: Prepared) -> str:
    """Which split is answered during training: that for validation, or of another data set that has none, the one that
    is evaluated."""
    if not part.name or prepared.manifest["counts"]["validation"]:
        return "validation"
    split = config.evaluation.split
    part.note_fallback(
        f"there is no validation split, so questions of its {split} split choose the best checkpoint: its score there "
        "is no longer that of new questions."
    )
    return split


def last_answers(state: TrainerState, scores: AnswerScores) -> dict[str, Any]:
    """How many questions were answered at each evaluation, and the metrics of the last one."""
    lines = [line for line in state.log_history if "eval_n" in line]
    last = {name: lines[-1][f"eval_{name}"] for name in scores.names} if lines else {}
    cut = {"cut": lines[-1]["eval_cut"]} if lines and "eval_cut" in lines[-1] else {}
    return {"n": len(scores.examples), **cut, "metrics": last}


def best_of(state: TrainerState) -> dict[str, Any]:
    """The best checkpoint and its metric, if the training looked for one."""
    if state.best_model_checkpoint is None:
        return {}
    return {"best_checkpoint": Path(state.best_model_checkpoint).name, "best_metric": state.best_metric}
