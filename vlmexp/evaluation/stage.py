"""stage=eval_base and stage=eval_finetuned."""

from __future__ import annotations

import dataclasses
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from transformers import PreTrainedModel, ProcessorMixin

from vlmexp import distributed
from vlmexp.checks import checked
from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import fit, token_lengths
from vlmexp.collator.media import media_key
from vlmexp.config import Config
from vlmexp.data.example import Example
from vlmexp.data.stage import load_split, prepared_data
from vlmexp.errors import UserError
from vlmexp.evaluation.blind import with_blank_images, with_other_images
from vlmexp.evaluation.generate import generate_answers
from vlmexp.evaluation.score import find_metric, summarise
from vlmexp.files import read_json, write_json, write_jsonl
from vlmexp.models.adapter import load_adapter
from vlmexp.models.fit import check_forward
from vlmexp.models.load import check_model, commit, load_model, load_processor
from vlmexp.parts import build_collator, model_source, set_threads, shares_images
from vlmexp.report import print_paths, print_scores
from vlmexp.runs import Run, differences, finished_runs, read_config, require_run

BASE, FINETUNED = "base_vlm_model", "finetuned_vlm_model"
TRAINED_WITH = ("model", "collator", "peft")  # groups of options that belong to a trained model


def eval_base(config: Config, run: Run) -> dict[str, Any]:
    """Score the model as it is, before any fine-tuning."""
    score_base(config, run)
    return report(run, BASE)


def eval_finetuned(config: Config, run: Run) -> dict[str, Any]:
    """Score the result of a training run: this run's own, the one named by `run=`, or the newest that fits."""
    score_finetuned(config, run)
    return report(run, FINETUNED)


def score_base(config: Config, run: Run) -> None:
    """Evaluate the base model, unless this run has done so."""
    if run.stage_result("eval_base") is None:
        with run.stage("eval_base") as result:
            set_threads(config)
            source = model_source(config)
            processor = check_model(source, run.note_fallback)
            model = load_model(source, run.note_fallback, config.seed)
            result |= evaluate_model(config, run, model, processor, BASE)


def score_finetuned(config: Config, run: Run) -> None:
    """Evaluate the fine-tuned model, unless this run has done so."""
    if run.stage_result("eval_finetuned") is None:
        with run.stage("eval_finetuned") as result:
            set_threads(config)
            source_run = run.directory if run.stage_result("train") else find_training_run(config)
            result["trained_by"] = str(source_run)
            trained = _config_of(source_run)
            if config.run is not None:
                _refuse_other_options(config, trained, source_run, run.record["overrides"])
            config = dataclasses.replace(
                config, model=trained.model, collator=trained.collator, peft=trained.peft, seed=trained.seed
            )
            model, processor = load_finetuned(config, source_run, run)
            result |= evaluate_model(config, run, model, processor, FINETUNED)


def _refuse_other_options(config: Config, trained: Config, source_run: Path, overrides: list[str]) -> None:
    """Raise a UserError where options were given that the trained model's own would silently replace."""
    asked, had = ({name: dataclasses.asdict(c)[name] for name in TRAINED_WITH} for c in (config, trained))
    given = tuple(text.partition("=")[0].lstrip("+") for text in overrides)
    listing = "; ".join(
        f"{option} is {old!r} there and {new!r} here"
        for option, (old, new) in differences(had, asked).items()
        if any(f"{option}.".startswith(f"{name}.") for name in given)
    )
    if listing:
        raise UserError(f"run={source_run} is evaluated as it was trained: {listing}. Leave these options out.")


def load_finetuned(config: Config, source_run: Path, run: Run) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model and processor as the training run left them in its `model/`."""
    folder = source_run / "model"
    source = model_source(config)
    processor = load_processor(dataclasses.replace(source, id=str(folder), revision=None), run.note_fallback)
    if config.peft.get("config_class") is None:
        whole = dataclasses.replace(source, id=str(folder), revision=None, random_init=False)
        return load_model(whole, run.note_fallback), processor
    base = load_model(source, run.note_fallback, config.seed)
    return load_adapter(base, folder), processor  # type: ignore[return-value]  # a PeftModel generates like its model


def evaluate_model(
    config: Config, run: Run, model: PreTrainedModel, processor: ProcessorMixin, name: str
) -> dict[str, Any]:
    """Generate, score and write `evaluation/<name>_evaluation.json` and `<name>_predictions.jsonl`."""
    evaluation, dataset = config.evaluation, config.dataset
    metrics = evaluation.metrics or dataset.metrics
    for metric in metrics:
        find_metric(metric)
    prepared = prepared_data(config, run)
    examples = load_split(config, prepared, evaluation.split, evaluation.max_examples)
    collator = build_collator(config, processor)
    # An example that is left out would flatter the score, so here `drop` shortens.
    overlong = "error" if config.collator.overlong == "error" else "shorten_text"
    fitted = fit(collator, examples, config.collator.max_length, overlong, with_answer=False)
    max_new_tokens = evaluation.max_new_tokens or dataset.max_new_tokens
    if len(fitted):
        check_forward(config.model.id, model, processor, collator.prompts([fitted[0]]))
    rows = list(examples)
    description = "evaluate base" if name == BASE else "evaluate fine-tuned"
    predictions = generated(config, run, model, collator, fitted, fitted.lengths, max_new_tokens, description)
    scores, summary = summarise(
        predictions, [row.answers for row in rows], [row.metadata or {} for row in rows], metrics
    )
    everything = len(examples) == examples.population
    result = {
        **summary,
        "split": evaluation.split,
        "population": examples.population,
        "sample": "all" if everything else f"random sample with seed {dataset.split_seed}",
        "shortened": len(fitted.shortened),
        "model": config.model.id,
        "model_commit": commit(model_source(config)),
        "dataset": dataset.name,
        "data_fingerprint": prepared.fingerprint,
        "generation": {"max_new_tokens": max_new_tokens, "do_sample": False, **evaluation.generation},
    }
    if name == FINETUNED and evaluation.blind != "none":
        result["blind"] = evaluate_blind(config, run, model, collator, rows, metrics, max_new_tokens)
    if not run.is_main:
        return {"n": result["n"], "metrics": result["metrics"]}
    write_jsonl(
        run.path("evaluation", f"{name}_predictions.jsonl"),
        (
            {
                "id": row.id,
                **row.fields,
                "images": [_stored_as(path, prepared.folder) for path in row.images],
                **({"videos": [_stored_as(path, prepared.folder) for path in row.videos]} if row.videos else {}),
                "answers": row.answers,
                "prediction": prediction,
                "scores": score,
                **(row.metadata or {}),
            }
            for row, prediction, score in zip(rows, predictions, scores, strict=True)
        ),
    )
    write_json(run.path("evaluation", f"{name}_evaluation.json"), result)
    return {"n": result["n"], "metrics": result["metrics"]}


def generated(
    config: Config,
    run: Run,
    model: PreTrainedModel,
    collator: Collator,
    examples: Sequence[Example],
    lengths: Sequence[int],
    max_new_tokens: int,
    description: str,
) -> list[str]:
    """The answers to all examples, on every rank; the ranks take the batches in turn.

    Questions about one image share it where that is exact.
    """
    keys = [str(media_key(example) or index) for index, example in enumerate(examples)]
    shared = shares_images(config, collator, keys, with_loss=False)
    if shared and config.evaluation.generation:
        run.note_fallback("evaluation.generation is set: every question reads its image anew, which takes longer.")
    own = generate_answers(
        model, collator, examples, lengths, config.evaluation.batch_size, max_new_tokens, config.evaluation.generation,
        description, share_images=shared,
        rank=distributed.rank(), ranks=distributed.world_size(),
    )  # fmt: skip
    return ["".join(answers) for answers in zip(*distributed.gathered(own), strict=True)]


def evaluate_blind(
    config: Config,
    run: Run,
    model: PreTrainedModel,
    collator: Collator,
    examples: list[Example],
    metrics: list[str],
    max_new_tokens: int,
) -> dict[str, Any]:
    """Score a random sample of the examples with images that are not theirs."""
    evaluation = config.evaluation
    count = min(evaluation.blind_examples, len(examples))
    sample = [examples[index] for index in sorted(random.Random(config.seed).sample(range(len(examples)), count))]
    with tempfile.TemporaryDirectory() as folder:
        blinded = (
            with_other_images(sample, config.seed)
            if evaluation.blind == "shuffle"
            else with_blank_images(sample, Path(folder))
        )
        lengths = token_lengths(collator, blinded, with_answer=False)
        description = f"evaluate with {evaluation.blind} images"
        predictions = generated(config, run, model, collator, blinded, lengths, max_new_tokens, description)
    _, summary = summarise(predictions, [e.answers for e in sample], [e.metadata or {} for e in sample], metrics)
    return {"images": evaluation.blind, **summary}


def find_training_run(config: Config) -> Path:
    """The run named by `run=`, or the newest finished one that trained the same model on the same data set.

    Raises:
        UserError: there is none; the message lists what there is.
    """
    root = Path(config.paths.outputs)
    if config.run is not None:
        directory = Path(config.run).expanduser().resolve()
        record = require_run(directory, root)
        if not (directory / "model").is_dir():
            raise UserError(
                f"run={directory} has no trained model (its status is {record['status']}): finish its training."
            )
        return directory
    trained = [
        (record["stages"]["train"]["started"], directory, read_config(directory))
        for folder in (root, Path(config.paths.multirun))
        for directory, record in finished_runs(folder, unfinished=True)
        if record["stages"].get("train", {}).get("status") == "done" and (directory / "model").is_dir()
    ]
    trained.sort(key=lambda item: item[0], reverse=True)
    wanted = (config.dataset.name, config.dataset.source, config.dataset.options)
    for _, directory, other in trained:
        data = (other["dataset"]["name"], other["dataset"]["source"], other["dataset"]["options"])
        if other["model"]["id"] == config.model.id and data == wanted:
            return directory.resolve()
    listing = "; ".join(f"{d} ({o['model']['id']} on {o['dataset']['name']})" for _, d, o in trained[:5])
    raise UserError(
        f"There is no finished training run of {config.model.id} on {config.dataset.name} under {root}/. "
        + (
            f"There are: {listing}. Choose one with run=."
            if listing
            else "Run stage=train first, or name one with run=."
        )
    )


def report(run: Run, name: str) -> dict[str, Any]:
    """Print the scores and where they are; return them with the main metric as `metric`."""
    path = run.path("evaluation", f"{name}_evaluation.json")
    result = read_json(path)
    print_scores({name.partition("_")[0]: result}, title=f"{result['dataset']}, {result['split']} split")
    print_paths({"evaluation": path, "predictions": path.with_name(f"{name}_predictions.jsonl"), "run": run.directory})
    return {"metric": result["metrics"].get(result["main_metric"]), **result["metrics"]}


def _stored_as(media: Path, folder: Path) -> str:
    """How the prepared data name a file: relative to their folder where it lies there."""
    return str(media.relative_to(folder) if media.is_relative_to(folder) else media)


def _config_of(directory: Path) -> Config:
    return checked(OmegaConf.create(read_config(directory)))  # type: ignore[arg-type]
