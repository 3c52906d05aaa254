"""What no single option tells: options that contradict or need each other."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from pathlib import Path

from vlmexp.checks.values import check_choice
from vlmexp.config import (
    MEDIA,
    NEEDS_TRAIN,
    SPLITS,
    Compare,
    Config,
    Evaluation,
    Tracking,
    required_roles,
    used_columns,
)
from vlmexp.errors import UserError, shown

EVALUATIONS = ("finetuned", "base")
FORMATS = ("table", "md", "csv", "json")
_KINDS = {
    "image": "image", "video": "video", "answer": "answers", "choices": "answers", "messages": "turns", "box": "boxes",
}  # fmt: skip
# What a line of *_predictions.jsonl has of its own, beside the roles of the question.
PREDICTION = ("id", "images", "videos", "question", "answers", "prediction", "cut", "ranking", "scores")
BOX_METRIC = "box_iou"
_NAME = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}", re.ASCII)


def check_together(config: Config) -> None:
    """What no single option tells."""
    if config.export.push_to_hub is not None and not _REPOSITORY.fullmatch(config.export.push_to_hub):
        raise UserError(
            f"export.push_to_hub={config.export.push_to_hub!r} must be ORG/NAME, each of letters, digits, '-', '_' and "
            "'.', with a letter or digit at both ends."
        )
    if config.collator.label_masking.ignore_index != -100:
        raise UserError(
            f"collator.label_masking.ignore_index={config.collator.label_masking.ignore_index} must be -100: it is the "
            "only label that the loss of transformers' models leaves out."
        )
    for option, name in (("name", config.dataset.name), ("version", config.dataset.version)):
        if Path(name).name != name or name in ("", ".."):
            raise UserError(
                f"dataset.{option}={name!r} must be the name of a folder, without '/': the prepared data go there, "
                "below paths.data."
            )
    if config.dataset.options.get("streaming"):
        raise UserError(
            f"dataset.options.streaming={config.dataset.options['streaming']}: data sets are not streamed. They are "
            "prepared on disk once and mapped from there, so memory does not grow with them: leave the option out, and "
            "set paths.data to a disk that has room for them."
        )
    for name, path in dataclasses.asdict(config.paths).items():
        if not path.strip():
            where = " (VLMEXP_DATA, which gives it, is empty)" if name == "data" and "VLMEXP_DATA" in os.environ else ""
            raise UserError(f"paths.{name} is empty{where}: name a folder, or leave it out.")
    _check_files(config)
    _check_boxes(config)
    has_conversations, has_boxes = (bool(config.dataset.columns.get(role)) for role in ("messages", "box"))
    for role in dict.fromkeys([*([] if has_conversations or has_boxes else ["answer"]), *required_roles(config)]):
        if not config.dataset.columns.get(role):
            raise UserError(f"dataset.columns.{role} is not set: name the column that holds each example's {role}.")
    _check_columns(config)
    asked = used_columns(config).keys() - {"answer", "choices", "messages", "box", *MEDIA}
    for option, column in [
        *(("metadata", column) for column in config.dataset.metadata),
        *(("kept", column) for column in config.dataset.kept),
    ]:
        if column in PREDICTION or column in asked:
            raise UserError(
                f"dataset.{option}=[{column}]: in the predictions {column!r} is the name of something else; rename the "
                "column, or leave it out."
            )
    _check_messages(config, has_conversations)
    if config.collator.share_images == "always" and not config.collator.label_masking.mask_input_tokens:
        raise UserError(
            "collator.share_images=always needs collator.label_masking.mask_input_tokens=true: "
            "a prompt that several questions share cannot carry a loss for each of them."
        )


def _check_boxes(config: Config) -> None:
    """A notation of boxes can be written and read back, and a box is all of an answer."""
    notation = config.model.boxes
    for option, text, places in (
        ("box", notation.box, ("{left}", "{top}", "{right}", "{bottom}")),
        ("around", notation.around, ("{boxes}",)),
        ("several", notation.several or "{boxes}", ("{boxes}",)),
    ):
        if any(text.count(place) != 1 for place in places):
            raise UserError(f"model.boxes.{option}={text!r} must have each of {', '.join(places)} once.")
    if "}{" in notation.box:
        raise UserError(f"model.boxes.box={notation.box!r} must have something between two numbers.")
    columns, metrics = config.dataset.columns, config.evaluation.metrics or config.dataset.metrics
    if not columns.get("box"):
        if BOX_METRIC in metrics:
            raise UserError(
                f"The metric {BOX_METRIC} is for data whose answers are boxes: name their column in "
                "dataset.columns.box, or leave the metric out."
            )
        return
    if texts := [name for name in metrics if name != BOX_METRIC and "." not in name]:
        raise UserError(
            f"dataset.columns.box={columns['box']}: the answers are boxes, and {', '.join(texts)} compare other "
            f"things. Set dataset.metrics=[{BOX_METRIC}], or name functions of your own by their dotted paths."
        )
    if columns.get("messages"):
        raise UserError(
            f"dataset.columns.box={columns['box']} and dataset.columns.messages={columns['messages']}: a conversation "
            "holds its answers itself, so leave one of the two out."
        )
    if not columns.get("image"):
        raise UserError(f"dataset.columns.box={columns['box']} needs dataset.columns.image: a box is in an image.")
    if config.evaluation.answers == "rank":
        raise UserError(
            f"evaluation.answers=rank: the answers are boxes (dataset.columns.box={columns['box']}), which are said "
            "and not chosen: leave it out."
        )


def _check_files(config: Config) -> None:
    """Local files: at least one, and one to train on where that is to be done."""
    options, name = config.dataset.options, config.dataset.name
    if config.dataset.source != "files" or options.get("train"):
        return
    named = [split for split in SPLITS if options.get(split)]
    if not named:
        raise UserError(
            "dataset.options.train has no default: set dataset.options.train=FILE, and dataset.options.test=FILE, with "
            f"dataset={name}. To evaluate alone the latter is enough."
        )
    if config.stage in NEEDS_TRAIN:
        raise UserError(
            f"stage={config.stage} needs a train split, and dataset={name} has only {' and '.join(named)}: set "
            "dataset.options.train=FILE, or choose stage=eval_base, which evaluates without one."
        )


def _check_columns(config: Config) -> None:
    """A column is stored in one form, so its roles must be of one kind, and `id` names the rows."""
    first: dict[str, str] = {}
    for role, column in used_columns(config).items():
        if column == "id":
            raise UserError(
                f"dataset.columns.{role}=id: the column 'id' names the rows and can have no other role. Give the "
                "values a column of their own; with dataset=files, "
                f'dataset.options.paths={{{role}: "{{id}}"}} adds one.'
            )
        other = first.setdefault(column, role)
        if _KINDS.get(role, "text") != _KINDS.get(other, "text"):
            raise UserError(
                f"dataset.columns.{other} and dataset.columns.{role} are both {column!r}, and one column cannot hold "
                f"both: name another for {role}, or set dataset.columns.{role}=null."
            )


def _check_messages(config: Config, has_conversations: bool) -> None:
    roles = [message.role for message in config.collator.messages]
    if not roles or roles[-1] not in ("assistant", "conversation"):
        raise UserError(
            "collator.messages must end with the assistant's message, which is what the model learns to say."
        )
    if "conversation" in roles[:-1] or (roles[-1] == "conversation" and set(roles[:-1]) - {"system"}):
        raise UserError(
            f"collator.messages have the roles {', '.join(roles)}: only a system message may stand beside the data "
            "set's conversation, and before it."
        )
    answer = "".join(part.text or "" for part in config.collator.messages[-1].content)
    if roles[-1] == "assistant" and "{answer}" not in answer and "{answer_column}" not in answer:
        raise UserError(
            f"collator.messages end with an assistant's message that says {answer!r} and has no {{answer}}: that is "
            "where each example's answer goes."
        )
    if has_conversations and config.model.prompt_style == "prefix":
        raise UserError(
            f"dataset={config.dataset.name} holds conversations, and {config.model.id} (model.prompt_style=prefix) "
            "takes one question and one answer: choose a model with a chat template."
        )
    if has_conversations != (roles[-1] == "conversation"):
        raise UserError(
            f"dataset.columns.messages={config.dataset.columns['messages']} holds conversations, and collator.messages "
            "have no place for them: choose collator=chat."
            if has_conversations
            else "collator.messages end with the data set's conversation, and it has none: set "
            "dataset.columns.messages to the column that holds them, or choose collator=vqa."
        )


def check_media(config: Config) -> None:
    """What the data set has, the collator shows and the model takes must fit together."""
    shown = dataclasses.asdict(config.collator.data_processing)
    present = [medium for medium in MEDIA if config.dataset.columns.get(medium)]
    used = [medium for medium in present if shown[f"{medium}_data"]]
    if present and not used:
        raise UserError(
            f"dataset={config.dataset.name} has only {' and '.join(present)} data, and "
            f"collator.data_processing.{present[0]}_data is false: switch it on"
            + (", as collator=video does." if present[0] == "video" else ".")
        )
    parts = {part.type for message in config.collator.messages[:-1] for part in message.content}
    for medium in used:
        if medium not in config.model.media:
            raise UserError(
                f"collator.data_processing.{medium}_data=true: {config.model.id} takes "
                f"{' and '.join(config.model.media) or 'no media'} (model.media) and no {medium}. "
                "Choose another model, or switch it off."
            )
        if medium not in parts and not config.dataset.columns.get("messages"):
            raise UserError(
                f"collator.messages show no {medium}, and the data set has some: add the part {{type: {medium}}} (as "
                f"collator={'video' if medium == 'video' else 'vqa'} does), or set "
                f"collator.data_processing.{medium}_data=false."
            )


def check_compare(compare: Compare) -> None:
    """The views of `stage=compare`: one of them at a time, with as many runs as it takes."""
    check_choice("compare.format", compare.format, FORMATS)
    if compare.evaluation is not None:
        check_choice("compare.evaluation", compare.evaluation, EVALUATIONS)
    for option, named, counts in (("diff", compare.diff, (2,)), ("paired", compare.paired, (1, 2))):
        if named and len(named) not in counts:
            raise UserError(f"compare.{option} names {len(named)} runs: write compare.{option}=[A,B].")
    views = [name for name in ("best", "failed", "diff", "paired") if getattr(compare, name)]
    views += ["html"] if compare.html is not None else []
    if len(views) > 1:
        raise UserError(f"compare.{' and compare.'.join(views)} are different views: ask for one of them.")
    if compare.best and (compare.format != "table" or compare.output is not None):
        raise UserError("compare.best prints two lines for a script: leave compare.format and compare.output out.")


def check_predict(config: Config) -> None:
    """What `stage=predict` is asked: one thing at a time, and a question where there is something to ask about."""
    named = {name: shown(getattr(config, name)) for name in ("image", "video", "question")}
    named = {name: value for name, value in named.items() if getattr(config, name) is not None}
    if config.stage != "predict":
        if named:
            name, value = next(iter(named.items()))
            raise UserError(f"{name}={value} is for stage=predict, and stage is {config.stage}: add stage=predict.")
        return
    predict, question = config.predict, named.pop("question", None)
    asked = [f"{name}={value}" for name, value in named.items()]
    asked += [] if predict.split is None else [f"predict.split={predict.split}"]
    if len(asked) > 1:
        raise UserError(f"{' and '.join(asked)} are questions of different kinds: ask for one of them.")
    if question is not None and not named:
        raise UserError(f"question={question} is about nothing: add image=FILE, image=FOLDER or video=FILE.")
    has_question = bool(config.dataset.columns.get("question") or config.dataset.columns.get("messages"))
    if named and question is None and has_question:
        raise UserError(f'{asked[0]} has no question: add question="What is it?", in quotes.')
    if named and question is not None and not has_question:
        raise UserError(
            f"question={question}: dataset={config.dataset.name} has no column of questions, so its prompt shows none: "
            "leave the question out, or choose another dataset."
        )
    if predict.max_examples is not None and predict.split is None:
        raise UserError(f"predict.max_examples={predict.max_examples} is for predict.split: name a split, too.")
    if predict.weights in ("adapter", "merged") and config.run is None:
        raise UserError(f"predict.weights={predict.weights} is what a training run has made: name it with run=.")


def check_evaluation(evaluation: Evaluation) -> None:
    """What belongs to one of the two ways to an answer."""
    if evaluation.answers == "generate":
        for name, value in (("choices", evaluation.choices), ("rank_per_token", evaluation.rank_per_token)):
            if value:
                raise UserError(
                    f"evaluation.{name}={value} is for ranking, and evaluation.answers is 'generate': set "
                    "evaluation.answers=rank, or leave it out."
                )
        return
    if evaluation.generation:
        raise UserError(
            f"evaluation.generation.{next(iter(evaluation.generation))}: evaluation.answers=rank generates nothing; "
            "leave it out."
        )
    choices = evaluation.choices
    if choices is not None and (len(set(choices)) < max(2, len(choices)) or not all(map(str.strip, choices))):
        raise UserError(
            f"evaluation.choices={evaluation.choices} must be at least two different answers, none of them empty."
        )


def check_tracking(tracking: Tracking) -> None:
    """A tracker that is not there, or that would ask for a key in the middle of a run."""
    if tracking.report_to == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise UserError("tracking=tensorboard needs a package: pip install tensorboard.")
    if tracking.report_to == "wandb" and tracking.mode == "online" and not _has_wandb_login():
        raise UserError(
            "tracking.mode=online needs an account: set WANDB_API_KEY (in the environment or .env), call "
            "`wandb login` once, or leave tracking.mode out to track offline."
        )


def _has_wandb_login() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    return Path(os.environ.get("NETRC", "~/.netrc")).expanduser().is_file()  # where `wandb login` writes
