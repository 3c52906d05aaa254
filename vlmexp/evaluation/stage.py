"""stage=eval_base and stage=eval_finetuned."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from vlmexp import distributed
from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import Fitted
from vlmexp.config import Config, peft_extras, train_extras
from vlmexp.data.example import Example
from vlmexp.data.images import small_image
from vlmexp.data.prepare import Prepared
from vlmexp.data.stage import limit_decoding, load_split, prepared_data
from vlmexp.evaluation.answers import (
    PREDICTIONS,
    Asker,
    Choices,
    answer_limit,
    check_decoding,
    cut_answers,
    find_choices,
    fitted_questions,
    identity_of,
)
from vlmexp.evaluation.duplicates import score_without_duplicates
from vlmexp.evaluation.journal import forget
from vlmexp.evaluation.limits import Limit
from vlmexp.evaluation.lookup import metric_names
from vlmexp.evaluation.probes import ALONE, BLIND, batch_invariance, evaluate_blind
from vlmexp.evaluation.row import row_of
from vlmexp.evaluation.score import summarise
from vlmexp.evaluation.suite import BASE, FINETUNED, print_suite, suite_result, take_over
from vlmexp.evaluation.trained import as_trained, check_data, find_training_run, load_finetuned
from vlmexp.evaluation.vision_cache import FOLDER, pictures_of, use_stored_features
from vlmexp.evaluation.vqa import ANNOTATORS, vqa_accuracy
from vlmexp.files import read_json, write_json, write_jsonl
from vlmexp.models.checkpoint import fingerprint
from vlmexp.models.encoders import Encoder
from vlmexp.models.fit import check_forward
from vlmexp.models.load import check_model, commit, device_name, load_model
from vlmexp.parts import build_collator, model_source, module_patterns, set_threads
from vlmexp.report import print_paths, print_scores
from vlmexp.runs import Run
from vlmexp.suites import evaluated
from vlmexp.tracking.opening import track_evaluation

OFFICIAL = "vqa_accuracy_2015"  # stands beside vqa_accuracy where there are several annotators
Asked = Sequence[tuple[Config, Run]]  # data sets: how each is evaluated, and in which part of the run


@dataclass(frozen=True)
class Loaded:
    """A model, and how each data set is evaluated with it.

    Attributes:
        weights: fingerprints of the checkpoints that it is made of; needed on rank 0.
        configs: one for each data set; prepared: what it is on disk.
        trained_on: for each, ids of rows that the training on other data is known to have seen.
        trained_by: the run that trained it.
    """

    model: PreTrainedModel
    processor: ProcessorMixin
    weights: list[str]
    configs: Sequence[Config]
    prepared: Sequence[Prepared]
    trained_on: Sequence[Collection[str]] = field(default_factory=list)
    trained_by: Path | None = None


def eval_base(config: Config, run: Run) -> dict[str, Any]:
    """Score the model as it is, before any fine-tuning."""
    score_base(config, run)
    return report(config, run, BASE)


def eval_finetuned(config: Config, run: Run) -> dict[str, Any]:
    """Score the result of a training run: this run's own, the one named by `run=`, or the newest that fits."""
    score_finetuned(config, run)
    return report(config, run, FINETUNED)


def score_base(config: Config, run: Run) -> None:
    """Evaluate the base model on what this run has not evaluated it on."""
    score(config, run, "eval_base", BASE, load_base)


def score_finetuned(config: Config, run: Run) -> None:
    """Evaluate the fine-tuned model on what this run has not evaluated it on."""
    score(config, run, "eval_finetuned", FINETUNED, load_trained)


def score(config: Config, run: Run, stage: str, name: str, load: Callable[[Config, Run, Asked], Loaded]) -> None:
    """Evaluate a model on the run's own data set, its suite, or both; its weights are loaded once, and if need be."""
    every = evaluated(config, run)
    asked = [(each, part) for each, part in every if part.stage_result(stage) is None]
    loaded: Loaded | None = None
    for number, (each, part) in enumerate(asked):
        with part.stage(stage) as result:
            done = run.stage_result(stage)
            if part is not run and done is not None and each.dataset == config.dataset:
                result |= take_over(done, run, part, name)
            else:
                loaded = loaded or load(config, run, asked)
                known = loaded.trained_on[number] if loaded.trained_on else ()
                result |= {"trained_by": str(loaded.trained_by)} if loaded.trained_by else {}
                as_loaded, prepared = loaded.configs[number], loaded.prepared[number]
                with part.about():
                    result |= evaluate_model(
                        as_loaded, part, prepared, loaded.model, loaded.processor, name, loaded.weights, known
                    )
            trained_by = Path(result["trained_by"]) if "trained_by" in result else None
            track_evaluation(config, part, name, small_image, trained_by)
    for _, part in every:
        forget_answers(part, name)


def load_base(config: Config, run: Run, asked: Asked) -> Loaded:
    """The model as it is; what is wrong with a data set is said before its weights are read."""
    set_threads(config)
    source = model_source(config)
    processor = check_model(source, run.note_fallback)
    prepared = []
    for each, part in asked:
        with part.about():
            metric_names(each.evaluation.metrics or each.dataset.metrics)  # one that fails shows here
            build_collator(each, processor)  # what the chat template does not take shows here
            check_decoding(each, processor)
            prepared.append(with_split(each, part))
    model = load_model(source, run.note_fallback, config.seed)
    weights = [fingerprint(source.location, source.revision)] if run.is_main else []
    return Loaded(model, processor, weights, [each for each, _ in asked], prepared)


def load_trained(config: Config, run: Run, asked: Asked) -> Loaded:
    """What a training run has made of it: this run, the one named by `run=`, or the newest that fits."""
    set_threads(config)
    source_run = run.directory if run.stage_result("train") else find_training_run(config)
    configs, prepared, trained_on = [], [], []
    for each, part in asked:
        with part.about():
            configs.append(as_trained(each, source_run, run.record["overrides"]))
            metric_names(each.evaluation.metrics or each.dataset.metrics)  # one that fails shows here
            prepared.append(with_split(configs[-1], part))
            trained_on.append(check_data(configs[-1], part, prepared[-1], source_run))
    model, processor = load_finetuned(configs[0], source_run, run)
    source = model_source(configs[0])
    places = [(source.location, source.revision), (str(source_run / "model"), None)] if run.is_main else []
    weights = [fingerprint(*place) for place in places]
    return Loaded(model, processor, weights, configs, prepared, trained_on, source_run)


def with_split(config: Config, run: Run) -> Prepared:
    """The prepared data set, which has to have the split that is evaluated."""
    prepared = prepared_data(config, run)
    load_split(config, prepared, config.evaluation.split, config.evaluation.max_examples)
    return prepared


def evaluate_model(
    config: Config,
    run: Run,
    prepared: Prepared,
    model: PreTrainedModel,
    processor: ProcessorMixin,
    name: str,
    weights: list[str],
    trained_on: Collection[str] = (),
) -> dict[str, Any]:
    """Ask, score and write `evaluation/<name>_evaluation.json` and `<name>_predictions.jsonl`.

    Args:
        weights: fingerprints of the checkpoints that the model is made of; needed on rank 0.
        trained_on: ids of rows that its training on other data is known to have seen.
    """
    evaluation, dataset = config.evaluation, config.dataset
    metrics = evaluation.metrics or dataset.metrics
    limit_decoding(config)  # another data set may have been prepared since
    examples = load_split(config, prepared, evaluation.split, evaluation.max_examples)
    choices = find_choices(config, prepared)
    collator = build_collator(config, processor)
    longest = answer_limit(config, run, prepared, collator, evaluation.split) if choices is None else None
    max_new_tokens = longest.tokens if longest else 0
    fitted = fitted_questions(config, run, collator, examples, evaluation.split)
    if len(fitted):
        check_forward(config.model.id, model, processor, collator.prompts([fitted[0]]))
        keep_features(config, run, model, collator, fitted, examples.media_keys(), name)
    rows = [examples[int(index)] for index in fitted.kept]
    asked, lengths = list(fitted), fitted.lengths.tolist()
    identity = identity_of(config, model, weights, prepared.fingerprint, max_new_tokens)
    asker = Asker(config, run, model, collator, choices, max_new_tokens, name, distributed.gathered(identity)[0])
    description = f"evaluate {'base' if name == BASE else 'fine-tuned'}{f' on {run.name[:-1]}' if run.name else ''}"
    answers = asker.ask(PREDICTIONS, asked, lengths, description)
    predictions = [answer["prediction"] for answer in answers]
    if "vqa_accuracy" in metrics and OFFICIAL not in metrics and any(len(row.answers) > 1 for row in rows):
        metrics = [*metrics, OFFICIAL]  # both are published, and they differ
    seen = zip(rows, map(collator.view, asked), strict=True)
    known = [row_of(row, evaluation.reasoning_tags, view) for row, view in seen]
    scores, summary = summarise(predictions, known, metrics, dataset.metadata)
    note_few_answers(run, rows, metrics)
    everything = len(examples) == examples.population
    result = {
        **summary,
        "split": evaluation.split,
        "population": examples.population,
        "sample": "all" if everything else f"random sample with seed {dataset.split_seed}",
        "shortened": len(fitted.shortened),
        "shrunk": len(fitted.shrunk),
        "too_long": len(fitted.too_long),
        "refused": len(fitted.refused),
        "model": config.model.id,
        "model_commit": commit(model_source(config)),
        "device": device_name(model),
        "dataset": dataset.name,
        "data_fingerprint": prepared.fingerprint,
        **({"cut": cut_answers(answers)} if longest else {}),
        **described(config, choices, longest, rows),
    }
    duplicates = score_without_duplicates(prepared, evaluation.split, known, predictions, metrics, trained_on)
    if duplicates is not None:
        result["duplicates"] = duplicates
    if evaluation.invariance_examples and not evaluation.generation.get("do_sample"):
        result["batch_invariance"] = batch_invariance(asker, asked, lengths, predictions)
    if name == FINETUNED and evaluation.blind != "none":
        shows = prepared.shows()
        blind = evaluate_blind(asker, asked, metrics, lambda path: shows.get(prepared.name_of(path), path))
        result |= {"blind": blind} if blind else {}
    if run.is_main:
        path = run.path("evaluation", f"{name}_predictions.jsonl")
        lines = zip(rows, answers, scores, strict=True)
        write_jsonl(path, (_prediction_line(prepared, *line) for line in lines))
        write_json(run.path("evaluation", f"{name}_evaluation.json"), result)
    made = {"generated": asker.generated, "taken_from_disk": asker.taken_from_disk}
    return {"n": result["n"], "metrics": result["metrics"], "answers": made}


def keep_features(
    config: Config, run: Run, model: PreTrainedModel, collator: Collator, fitted: Fitted, keys: np.ndarray, name: str
) -> None:
    """Have the vision tower look at every picture once, for the evaluations before and after a training."""
    if config.evaluation.generation:  # beams and samples repeat what belongs to a picture, each family in its own way
        return
    model.requires_grad_(False)  # nothing is trained here
    pictures = pictures_of(fitted, fitted.media_keys(keys))
    trains_it = not {"vision", "projector"}.isdisjoint(peft_extras(config).train_parts)
    evaluations = 2.0 if config.stage == "pipeline" and not trains_it else 1.0
    about = use_stored_features(
        model,
        lambda: Encoder(model, module_patterns(config)),
        [collator],
        pictures,
        evaluations,  # within one, the questions about a picture share it where they can
        train_extras(config).cache_vision_features,
        Path(config.paths.data).expanduser() / FOLDER,
        None,
        run.note_fallback,
        run.interruption.check,
    )
    run.update(vision_features={**run.record.get("vision_features", {}), name: about})


def note_few_answers(run: Run, examples: list[Example], metrics: Sequence[str]) -> None:
    """Say that VQA accuracy, which is made for ten answers a question, cannot reach 100 % with a few of them."""
    few = [len(example.answers) for example in examples if 1 < len(example.answers) < ANNOTATORS]
    if few and "vqa_accuracy" in metrics:
        least = min(few)
        best = vqa_accuracy("a", ["a"] * least)
        run.note_fallback(
            f"{len(few)} of {len(examples)} questions have 2 to 9 answers, and VQA accuracy is made for "
            f"ten: a prediction that equals all of {least} answers gets {100 * best:.0f} %. Where any answer is right, "
            "choose evaluation.metrics=[exact_match]."
        )


def described(
    config: Config, choices: Choices | None, longest: Limit | None, examples: list[Example]
) -> dict[str, Any]:
    """How the answers were made; of a ranking also how many questions have an accepted answer among the choices."""
    if longest is not None:
        limit = {"max_new_tokens": longest.tokens, "max_new_tokens_from": longest.source}
        tags = {"reasoning_tags": config.evaluation.reasoning_tags}
        return {"generation": {**limit, **tags, "do_sample": False, **config.evaluation.generation}}
    assert choices is not None
    within = sum(not set(example.answers).isdisjoint(choices.options(example)) for example in examples)
    return {
        "ranking": {
            "choices": choices.source,
            **({"n_choices": len(choices.texts), "of": choices.of} if choices.texts is not None else {}),
            "per_token": config.evaluation.rank_per_token,
            "answerable": within,
        }
    }


def forget_answers(run: Run, name: str) -> None:
    """Remove what was kept of the answers while they came: a finished evaluation has its own files."""
    if run.is_main:
        for kind in (PREDICTIONS, ALONE, BLIND):
            forget(run.path("evaluation"), f"{name}_{kind}")


def report(config: Config, run: Run, name: str) -> dict[str, Any]:
    """Print the scores and where they are; return them, and of a single data set the main metric as `metric`."""
    if config.evaluation.suite:
        print_suite(config, run)
        return suite_result(config, run, name)
    path = run.path("evaluation", f"{name}_evaluation.json")
    result = read_json(path)
    print_scores({name.partition("_")[0]: result}, title=f"{result['dataset']}, {result['split']} split")
    print_paths({"evaluation": path, "predictions": path.with_name(f"{name}_predictions.jsonl"), "run": run.directory})
    return {"metric": result["metrics"].get(result["main_metric"]), **result["metrics"]}


def _prediction_line(
    prepared: Prepared, example: Example, answer: Mapping[str, Any], scores: Mapping[str, float]
) -> dict[str, Any]:
    videos = [prepared.name_of(path) for path in example.videos]
    return {
        "id": example.id,
        **example.fields,
        "images": [prepared.name_of(path) for path in example.images],
        **({"videos": videos} if videos else {}),
        "answers": example.answers,
        **answer,
        "scores": scores,
        **(example.metadata or {}),
    }
