"""stage=export: from `model/` to a checked `deployment_model/`, model cards, and the Hub."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable
from typing import Any

import torch
from peft import PeftModel
from transformers import PreTrainedModel

from vlmexp import distributed
from vlmexp.collator.batch import Collator
from vlmexp.collator.encode import special_token_arguments
from vlmexp.collator.lengths import KEEPING_ALL, fit
from vlmexp.config import Config, peft_extras, used_columns
from vlmexp.data.example import Example, prompt_fields
from vlmexp.data.stage import load_split, prepared_data
from vlmexp.data.turns import Turn
from vlmexp.errors import UserError
from vlmexp.evaluation.answers import answer_limit
from vlmexp.evaluation.trained import load_finetuned
from vlmexp.export.cards import write_cards
from vlmexp.files import new_folder
from vlmexp.models.adapter import merged, tied_embeddings
from vlmexp.models.adapter_kinds import moves_base
from vlmexp.models.export import (
    end_answers_with,
    find_writer,
    load_stored_processor,
    loading,
    stored_source,
    weight_bytes,
    with_auto_classes,
)
from vlmexp.models.hub import check_access, push
from vlmexp.models.kept_answers import KeptAnswers, read_answers
from vlmexp.models.load import load_model
from vlmexp.models.parity import (
    MERGE_TOLERANCES,
    QUANTIZED_TOLERANCE,
    STORED_TOLERANCES,
    Answer,
    Parity,
    greedy_answers,
)
from vlmexp.parts import adapter_config, build_collator, model_source, set_threads
from vlmexp.report import print_paths
from vlmexp.runs import Run
from vlmexp.storage import size, writing

PARITY_BATCH = 4  # the usual eight prompts are two batches, each with padding of its own
PARITY_TOKENS = 16  # at most, for each answer
KEPT = "trained_answers.safetensors"  # what the trained model answered before it was saved


def export(config: Config, run: Run) -> dict[str, Any]:
    """Write `deployment_model/` and the model cards anew from this run's `model/`, and push them if asked to."""
    check_export(config)
    if not run.path("model").is_dir():
        raise UserError(f"{run.directory} has no model/ to export: name a run with run= whose training is finished.")
    export_model(config, run, again=True)
    publish(config, run, again=True)
    print_paths({"adapter": run.path("model"), "merged": run.path("deployment_model"), "run": run.directory})
    return {}


def check_export(config: Config) -> None:
    """Raise a UserError, before anything is trained, for what would fail at the end of it."""
    find_writer(config.export.writer, config.model.export_writer)
    adapter_config(config)
    if config.export.push_to_hub is not None:
        check_access(config.export.push_to_hub)


def export_model(config: Config, run: Run, again: bool = False) -> None:
    """Write `deployment_model/`, unless this run has done so and it is still there."""
    written = run.stage_result("export") is not None and run.path("deployment_model").is_dir()
    if again or not distributed.gathered(written)[0]:
        with run.stage("export"):
            if run.is_main:
                set_threads(config)
                _export(config, run)


def publish(config: Config, run: Run, again: bool = False) -> None:
    """Write the model cards with what is known by now, and push, unless this run has done so."""
    if run.is_main:
        write_cards(config, run)
    repository = config.export.push_to_hub
    if repository is not None and (again or run.stage_result("push") is None):
        with run.stage("push") as result:
            if run.is_main:
                folder = run.path("model" if config.export.push == "adapter" else "deployment_model")
                commit = push(folder, repository, config.export.private, f"vlmexp run {run.record['id']}")
                result |= {"repository": repository, "what": config.export.push, "commit": commit}


def _export(config: Config, run: Run) -> None:
    writer = find_writer(config.export.writer, config.model.export_writer)
    _free_memory()
    model, processor = load_finetuned(config, run.directory, run)
    collator = build_collator(config, processor)
    examples = _parity_examples(config, run, collator)
    batches = _batches(collator, examples)
    longest = answer_limit(config, run, prepared_data(config, run), collator, config.evaluation.split).tokens
    answers = _answering(collator, batches)
    quantized = peft_extras(config).quantization is not None
    said = answers(model)
    kept = _kept_answers(run, batches)
    parity, reference = Parity(kept.answers if kept else said, in_memory=kept is not None), "trained"
    # The precision of the coarser one, where a model that was trained on a GPU is exported on a CPU.
    rounded = max(model.dtype, kept.dtype if kept else model.dtype, key=STORED_TOLERANCES.__getitem__)
    if kept:
        # Whole modules are trained in float32 whatever the model's own precision is, and loaded again in that.
        rounds = moves_base(config.peft) or config.peft.get("modules_to_save")
        same = rounded == model.dtype == kept.dtype and not rounds
        parity.add("model", said, (STORED_TOLERANCES if same else MERGE_TOLERANCES)[rounded])
    if quantized:
        # What is merged is the base as it was before it was quantised, in the model's dtype.
        del model
        _free_memory()
        config = dataclasses.replace(config, peft={**config.peft, "quantization": None})
        model, processor = load_finetuned(config, run.directory, run)
        reference = "on the full base"
        parity.add(reference, answers(model), QUANTIZED_TOLERANCE)
    source, dtype = model_source(config), model.dtype
    base_tied = bool(getattr(model.config, "tie_word_embeddings", False))
    loaded_by = {"model": loading(with_auto_classes(source, model.config), model.config)}
    revision = getattr(model.config, "_commit_hash", None) or source.revision

    stored_form_of = reference
    if isinstance(model, PeftModel):
        with model.disable_adapter():
            parity.without_adapter(answers(model), reference)
        model = merged(model)
        parity.add("merged", answers(model), MERGE_TOLERANCES[rounded], reference)
        stored_form_of = "merged"
    end_answers_with(model, processor.tokenizer, collator.end_id)
    tied = tied_embeddings(model)
    with new_folder(run.path("deployment_model")) as folder:
        takes = f"the merged model takes about {size(weight_bytes(model.parameters()))}"
        with writing(run.path("deployment_model"), needs=takes):
            backend = writer(model, processor, folder)
        del model
        _free_memory()
        stored = stored_source(folder, source)
        deployed = load_model(stored, run.note_fallback)
        loaded_by["deployment_model"] = loading(stored, deployed.config, backend)
        said = answers(deployed)
        parity.add(
            "deployment_model",
            said,
            STORED_TOLERANCES[rounded if stored_form_of == "trained" else dtype],
            stored_form_of,
        )
        parity.add("deployment_model", said, MERGE_TOLERANCES[rounded], reference)
        stored_processor = load_stored_processor(stored, backend, run.note_fallback)
        parity.add_inputs(batches, _batches(build_collator(config, stored_processor), examples))
        run.update(
            export={
                "dtype": str(dtype).removeprefix("torch."),
                "tied_embeddings": tied,
                "untied_by_adapter": base_tied and not tied,
                "parity": parity.record(),
                "base_revision": revision,
                "prompt": card_prompt(config, collator),
                "max_new_tokens": longest,
                "loading": loaded_by,
            }
        )
        if problem := parity.problem():
            is_model = problem.startswith("model against")
            about = "What model/ holds is not it either" if is_model else "The adapter in model/ is unharmed"
            raise UserError(
                f"deployment_model/ is not written, as it would not be what was trained: {problem} {about}; "
                "export.parity_examples=0 writes it without this check."
            )
    if parity.input_difference:
        run.note_fallback(
            f"The processor in deployment_model/ gives pixels that differ by up to {parity.input_difference:.3g} from "
            "those that the model was trained on."
        )


def keep_answers(config: Config, run: Run, model: PreTrainedModel | PeftModel, collator: Collator) -> None:
    """Keep what a trained model answers to the prompts of the check, before anything is made of it.

    The export compares with this, in this process or in a later one.
    """
    batches = _batches(collator, _parity_examples(config, run, collator))
    if batches:
        answers = _answering(collator, batches)(model.eval())
        with writing(run.path(KEPT)):
            KeptAnswers([batch["input_ids"] for batch in batches], answers, model.dtype).write(run.path(KEPT))


def _kept_answers(run: Run, batches: list[dict[str, torch.Tensor]]) -> KeptAnswers | None:
    """What the trained model answered to these prompts; None if it was not asked just these."""
    if not batches or not run.path(KEPT).is_file():
        return None
    try:
        kept = read_answers(run.path(KEPT))
    except UserError as damaged:
        run.note_fallback(f"{damaged} Meanwhile deployment_model/ is compared with model/ as it was loaded again.")
        return None
    if kept.are_to(batches):
        return kept
    run.note_fallback(
        "The trained model was asked other prompts at the end of its training (export.parity_examples): "
        "deployment_model/ is compared with model/ as it was loaded again."
    )
    return None


def _answering(collator: Collator, batches: list[dict[str, torch.Tensor]]) -> Callable[[Any], list[Answer]]:
    return functools.partial(
        greedy_answers, batches=batches, max_new_tokens=PARITY_TOKENS, pad_id=collator.pad_id, end_id=collator.end_id
    )


def _parity_examples(config: Config, run: Run, collator: Collator) -> list[Example]:
    """Examples from all over the validation split, or from the train split if that has too few."""
    prepared, count = prepared_data(config, run), config.export.parity_examples
    enough = prepared.manifest["counts"]["validation"] >= max(count, 1)
    split = load_split(config, prepared, "validation" if enough else "train")
    count = min(count, len(split))
    chosen = [split[index * len(split) // count] for index in range(count)]
    overlong = KEEPING_ALL.get(config.collator.overlong, config.collator.overlong)
    share = float(config.dataset.on_bad_sample == "skip")  # the training has counted how many there are
    return list(fit(collator, chosen, config.collator.max_length, overlong, with_answer=False, refused_share=share))


def _batches(collator: Collator, examples: list[Example]) -> list[dict[str, torch.Tensor]]:
    return [collator.prompts(examples[start : start + PARITY_BATCH]) for start in range(0, len(examples), PARITY_BATCH)]


def card_prompt(config: Config, collator: Collator) -> dict[str, Any]:
    """The text that the processor takes, with `{question}` and other fields in their places."""
    columns = used_columns(config)
    fields = {role: f"{{{role}}}" for role in prompt_fields(columns)}
    images, videos = int("image" in columns), int("video" in columns)
    shown = [("video", "")] * videos + [("image", "")] * images
    turns = [Turn("user", (*shown, ("text", "{question}")))] if collator.template.has_conversation else []
    text = collator.template.render(fields, images, videos, turns)
    return {
        "text": collator.template.processor_text(text),
        "images": images,
        "videos": videos,
        **{"add_special_tokens": True, **special_token_arguments(collator.processor, text)},
    }


def _free_memory() -> None:
    """Give back what a model of before has left in reference cycles and in the GPU's cache."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
