"""stage=predict: answers to a split without answers, to a question that is typed, or to one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vlmexp import distributed
from vlmexp.collator.lengths import token_lengths
from vlmexp.config import Config
from vlmexp.data.example import Example
from vlmexp.errors import UserError
from vlmexp.files import append_text, json_text, read_jsonl, write_jsonl, write_text
from vlmexp.models.fit import check_forward
from vlmexp.models.load import commit, device_name
from vlmexp.parts import set_threads
from vlmexp.predict.asking import ANSWERS, FOLDER, Ready, asker_of, forget_answers, load_asker, prepare_questions
from vlmexp.predict.dialogue import converse
from vlmexp.predict.media import Named, question_about
from vlmexp.predict.outputs import as_csv, counted, prediction_line
from vlmexp.predict.questions import (
    Questions,
    check_typed,
    kind_typed,
    limit_decoding,
    showing,
    split_questions,
    typed_questions,
    video_library,
)
from vlmexp.predict.submission import submission
from vlmexp.predict.weights import Weights, check_weights, find_weights
from vlmexp.report import print_paths
from vlmexp.runs import Run

LINES, TABLE, SUBMISSION = "predictions.jsonl", "predictions.csv", "submission.json"
PRINTED = 20  # answers


def predict(config: Config, run: Run) -> dict[str, Any]:
    """Answer what is asked, with a run's adapter, its merged model, or a model as it is."""
    if kind_typed(config) is None and config.predict.split is None:
        return answer_in_terminal(config, run)
    if run.stage_result("predict") is None:
        with run.stage("predict") as result:
            result |= answer_all(config, run)
    forget_answers(run)
    refuse_other_files(config, run)
    return report(run)


def check_predict(config: Config) -> None:
    """What can be said before a directory is made: of the run that is asked, and of the files that are named."""
    check_weights(config)
    if (kind := kind_typed(config)) is not None:
        check_typed(config, kind)
    elif config.predict.split is None and distributed.world_size() > 1:
        raise UserError(
            "stage=predict asks in the terminal, and several processes have one of them: name image=FILE and "
            "question=, or predict.split, or start one process."
        )


def answer_all(config: Config, run: Run) -> dict[str, Any]:
    """Ask all questions and write the answers; returns what run.json keeps."""
    set_threads(config)
    weights = find_weights(config, run.record["overrides"])
    processor = weights.processor(run.note_fallback)
    kind = kind_typed(config)
    questions = (
        split_questions(weights.config, run)
        if kind is None
        else typed_questions(weights.config, kind, run.note_fallback)
    )
    ready = prepare_questions(weights, questions, processor, run)
    asker = load_asker(ready, run)
    asked = list(ready.fitted)
    answers = asker.ask(ANSWERS, asked, ready.fitted.lengths.tolist(), "predict")
    lines = all_lines(ready, asked, answers)
    files = write_predictions(run, questions, lines, config.dataset.submission) if run.is_main else []
    return {
        **counted(lines),
        **described(ready, asker.model),
        "answers": {"generated": asker.generated, "taken_from_disk": asker.taken_from_disk},
        "files": files,
        "submission": None if questions.ids is None else config.dataset.submission,
    }


def refuse_other_files(config: Config, run: Run) -> None:
    """Raise a UserError if a finished run has not written the test server's file that is asked for now."""
    form, done = config.dataset.submission, run.stage_result("predict") or {}
    asked = form is not None and config.predict.split is not None and config.predict.max_examples is None
    if asked and done.get("submission") != form:
        raise UserError(
            f"dataset.submission={form}: {run.directory} is finished and has written "
            f"{done.get('submission') or 'no file for a test server'}. Start a new run for it."
        )


def all_lines(ready: Ready, asked: Sequence[Example], answers: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for each question, in their order, those that could not be asked at the end."""
    questions = ready.questions
    whole = [questions.examples[int(index)] for index in ready.fitted.kept]  # as asked, they may be shortened
    lines = [prediction_line(e, a, questions.name_of) for e, a in zip(whole, answers, strict=True)]
    failed = {**ready.fitted.refused, **questions.failed}
    return [*lines, *({"id": id, "error": error} for id, error in failed.items())]


def write_predictions(run: Run, questions: Questions, lines: list[dict[str, Any]], form: str | None) -> list[str]:
    """Write the files; returns their names."""
    write_jsonl(run.path(FOLDER, LINES), lines)
    write_text(run.path(FOLDER, TABLE), as_csv(lines))
    if questions.ids is None or form is None:
        return [LINES, TABLE]
    text = submission(form, questions.ids, [line["prediction"] for line in lines])
    write_text(run.path(FOLDER, SUBMISSION), text)
    return [LINES, TABLE, SUBMISSION]


def described(ready: Ready, model: Any) -> dict[str, Any]:
    """How the answers were made."""
    config, weights = ready.questions.config, ready.weights
    made = (
        {"max_new_tokens": ready.limit.tokens, "max_new_tokens_from": ready.limit.source}
        if ready.choices is None
        else {"choices": ready.choices.source}
    )
    return {
        "of": str(weights),
        "weights": weights.kind,
        "model": config.model.id,
        "model_commit": None if weights.kind == "merged" else commit(weights.source),
        "device": device_name(model),
        "data_fingerprint": ready.questions.fingerprint,
        "shortened": len(ready.fitted.shortened),
        "shrunk": len(ready.fitted.shrunk),
        "too_long": len(ready.fitted.too_long),
        **made,
    }


def report(run: Run) -> dict[str, Any]:
    """Print a few answers, how many there are, and where; returns the numbers."""
    done = run.stage_result("predict") or {}
    lines = read_jsonl(run.path(FOLDER, LINES))
    for line in lines if len(lines) <= PRINTED else []:
        print(f"{line['id']}: {line.get('prediction', line.get('error'))}")
    print(in_words(done))
    print_paths({**{name: run.path(FOLDER, name) for name in done["files"]}, "run": run.directory})
    return {name: done[name] for name in ("answered", "cut", "failed")}


def in_words(done: Mapping[str, Any]) -> str:
    """How many questions were answered, cut and failed."""
    asked = f"{done['answered']:,} question{'s' * (done['answered'] != 1)}"
    cut = f"{done['cut']:,} of them cut at {done['max_new_tokens']:,} tokens" if done["cut"] else "none of them cut"
    return f"{asked} answered by {done['of']}, {cut}, {done['failed']:,} not asked"


def answer_in_terminal(config: Config, run: Run) -> dict[str, Any]:
    """Load the model, then answer what is typed, each answer a line of the predictions as soon as it is there."""
    set_threads(config)
    limit_decoding(config)
    weights = find_weights(config, run.record["overrides"])
    processor = weights.processor(run.note_fallback)
    path = run.path(FOLDER, LINES)
    path.parent.mkdir(exist_ok=True)
    with run.stage("predict") as result:
        nothing = Questions(weights.config, [], "")
        ready = prepare_questions(weights, nothing, processor, run)
        model, fingerprints = weights.load(run), weights.fingerprints()

        def answer(kind: str, named: Named, question: str) -> str:
            line = answered(weights, ready, run, model, fingerprints, kind, named, question)
            append_text(path, json_text(line) + "\n")
            return str(line["prediction"]) + " [cut]" * bool(line.get("cut"))

        template = ready.collator.template
        has_question = template.has_conversation or "question" in template.shown_fields
        with run.interruption.ended_by_interrupt():
            converse(answer, video_library(config), has_question)
        lines = read_jsonl(path)
        write_text(path.with_name(TABLE), as_csv(lines))
        result |= {**counted(lines), **described(ready, model), "files": [LINES, TABLE]}
    forget_answers(run)
    print(in_words(run.stage_result("predict") or {}))
    print_paths({LINES: path, TABLE: path.with_name(TABLE), "run": run.directory})
    return counted(lines)


def answered(
    weights: Weights,
    ready: Ready,
    run: Run,
    model: Any,
    fingerprints: list[str],
    kind: str,
    named: Named,
    question: str,
) -> dict[str, Any]:
    """The line of one question that was typed.

    Raises:
        UserError: the model does not take it; another question may be asked.
    """
    (id, files), *_ = named.files.items()
    in_conversation = bool(weights.config.dataset.columns.get("messages"))
    example = question_about(id, kind, files, question, in_conversation)
    questions = Questions(showing(weights.config, kind), [example], question)
    one = prepare_questions(weights, questions, ready.collator.processor, run)
    check_forward(weights.config.model.id, model, one.collator.processor, one.collator.prompts([one.fitted[0]]))
    forget_answers(run)  # of the question before: each is asked, however often it is typed
    asker = asker_of(one, run, model, fingerprints)
    (answer,) = asker.ask(ANSWERS, [one.fitted[0]], token_lengths(one.collator, [one.fitted[0]], False), "")
    return prediction_line(example, answer, questions.name_of)
