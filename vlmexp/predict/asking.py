"""From questions to a model's answers to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from vlmexp import distributed
from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import Fitted
from vlmexp.config import Config
from vlmexp.errors import UserError
from vlmexp.evaluation.answers import Asker, Choices, check_decoding, find_choices, fitted_questions, identity_of
from vlmexp.evaluation.journal import forget
from vlmexp.evaluation.limits import Limit
from vlmexp.models.fit import check_forward
from vlmexp.parts import build_collator
from vlmexp.predict.questions import Questions
from vlmexp.predict.weights import Weights
from vlmexp.runs import Run

FOLDER, NAME, ANSWERS = "predictions", "predictions", "answers"  # where answers are while they come
UNKNOWN = 256  # tokens of an answer, where nothing tells how long answers are


@dataclass(frozen=True)
class Ready:
    """Questions that fit, and what puts them to a model: all that can be known before weights are read."""

    weights: Weights
    questions: Questions
    fitted: Fitted
    collator: Collator
    choices: Choices | None
    limit: Limit


def prepare_questions(weights: Weights, questions: Questions, processor: ProcessorMixin, run: Run) -> Ready:
    """Make the questions ready to be asked.

    Raises:
        UserError: an option, a question or its media cannot be used; or one of a split whose test server takes an
            answer to each.
    """
    config, typed = questions.config, questions.prepared is None
    check_decoding(config, processor)
    collator = build_collator(config, processor)
    template = collator.template
    if config.question is not None and not template.has_conversation and "question" not in template.shown_fields:
        raise UserError(
            f"question={config.question}: collator.messages show no {{question}}, so the model would not see it. Leave "
            "it out, or choose collator=vqa."
        )
    fitted = fitted_questions(config, run, collator, questions.examples, config.predict.split or "what is asked")
    for count, what in ((len(fitted.shortened), "lose their end"), (len(fitted.shrunk), "have smaller images")):
        if count:
            run.note_fallback(f"{count} of {len(questions.examples)} questions {what} (collator.max_length).")
    if questions.ids is not None and fitted.refused:
        raise UserError(
            f"dataset.submission={config.dataset.submission} takes an answer to every question, and the processor "
            f"refuses {len(fitted.refused)}: {next(iter(fitted.refused.values()))} Set dataset.submission=null to "
            "write no file for it."
        )
    return Ready(weights, questions, fitted, collator, _choices(config, questions), longest_answer(weights, typed))


def load_asker(ready: Ready, run: Run) -> Asker:
    """Load the weights, and try them on the first question."""
    config, model = ready.questions.config, ready.weights.load(run)
    if len(ready.fitted):
        check_forward(config.model.id, model, ready.collator.processor, ready.collator.prompts([ready.fitted[0]]))
    return asker_of(ready, run, model, ready.weights.fingerprints() if run.is_main else [])


def asker_of(ready: Ready, run: Run, model: PreTrainedModel, fingerprints: list[str]) -> Asker:
    """What asks the model, and keeps each answer on disk at once."""
    tokens = ready.limit.tokens if ready.choices is None else 0
    config, data = ready.questions.config, ready.questions.fingerprint
    identity = distributed.gathered(identity_of(config, model, fingerprints, data, tokens))[0]
    return Asker(config, run, model, ready.collator, ready.choices, tokens, NAME, identity, FOLDER)


def forget_answers(run: Run) -> None:
    """Remove what was kept of the answers while they came."""
    if run.is_main:
        forget(run.path(FOLDER), f"{NAME}_{ANSWERS}")


def longest_answer(weights: Weights, typed: bool) -> Limit:
    """How long an answer may be: what is set, else what the data set says, else what the training's answers needed.

    A data set's own limit means nothing for what somebody types to a model that was not trained on it.
    """
    config, options = weights.config, list[tuple[str, Any]]()
    options.append(("evaluation.max_new_tokens", config.evaluation.max_new_tokens))
    if not typed or weights.run is not None:
        options.append(("dataset.max_new_tokens", config.dataset.max_new_tokens))
    options.append((f"the export of {weights.run}", weights.record.get("export", {}).get("max_new_tokens")))
    options.append(("vlmexp, as nothing tells how long answers are", UNKNOWN))
    return next(Limit(tokens, source) for source, tokens in options if tokens is not None)


def _choices(config: Config, questions: Questions) -> Choices | None:
    if questions.prepared is not None:
        return find_choices(config, questions.prepared)
    evaluation = config.evaluation
    if evaluation.answers == "generate":
        return None
    if evaluation.choices is None:
        raise UserError(
            "evaluation.answers=rank has no candidates for a question that is typed: set evaluation.choices=[A,B], or "
            "evaluation.answers=generate."
        )
    return Choices(evaluation.choices, "evaluation.choices", len(evaluation.choices))
