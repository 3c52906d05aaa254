"""Options that have one of a few values, or a number in a range."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vlmexp.bounds import Bounds, bounds_of
from vlmexp.config import MEDIA, SPLITS, Config
from vlmexp.errors import UserError, closest, shown

DTYPES = ("bfloat16", "float16", "float32")
OVERLONG = ("error", "drop", "shorten_text", "shrink_image")
MESSAGE_ROLES = ("system", "user", "assistant", "conversation")
ANSWER_FOLLOWS = ("finished_turn", "generation_prompt")
SHARE_IMAGES = ("auto", "always", "never")
PACKING = ("auto", "never")
SHARED_IMAGE_PREFIX = ("auto", "true", "false")
ANSWERS = ("generate", "rank")
BLINDS = ("shuffle", "blank", "none")
PROMPT_STYLES = ("chat", "prefix")
RESIZE_MODES = ("keep_aspect", "crop", "stretch")
VIDEO_LIBRARIES = ("auto", "decord", "cv2", "pyav", "torchcodec")
SAMPLING_STRATEGIES = ("uniform", "fps")
ON_BAD_SAMPLE = ("error", "skip")
ON_DUPLICATES = ("report", "drop_from_train", "error")
CONVERT = ("auto", "always", "never")
TRAIN_ANSWERS = ("most_common", "sampled")
WANDB_MODES = ("online", "offline", "disabled")
TRACKERS = ("none", "tensorboard", "wandb")
PUSHED = ("merged", "adapter")
WEIGHTS = ("adapter", "merged", "base")
SUBMISSIONS = ("evalai", "rrc", "vizwiz")
BOX_FORMS = ("xywh", "xyxy")
BOX_UNITS = ("shares", "thousandths", "loc", "pixels")


def check_choices(config: Config) -> None:
    """Refuse what is none of the possible values."""
    frames = config.collator.video_processing.frame_extraction
    for part in ("vision", "projector"):
        if (pattern := getattr(config.model.modules, part)) is not None:
            check_pattern(f"model.modules.{part}", pattern)
    for option, value, choices in (
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.prompt_style", config.model.prompt_style, PROMPT_STYLES),
        ("model.boxes.unit", config.model.boxes.unit, BOX_UNITS),
        *(("model.media", medium, MEDIA) for medium in config.model.media),
        ("collator.overlong", config.collator.overlong, OVERLONG),
        ("collator.answer_follows", config.collator.answer_follows, ANSWER_FOLLOWS),
        ("collator.share_images", config.collator.share_images, SHARE_IMAGES),
        ("collator.packing", config.collator.packing, PACKING),
        ("model.shared_image_prefix", str(config.model.shared_image_prefix).lower(), SHARED_IMAGE_PREFIX),
        ("tracking.report_to", config.tracking.report_to, TRACKERS),
        *(("tracking.mode", mode, WANDB_MODES) for mode in [config.tracking.mode] if mode is not None),
        *(("predict.weights", kind, WEIGHTS) for kind in [config.predict.weights] if kind is not None),
        *(("dataset.submission", form, SUBMISSIONS) for form in [config.dataset.submission] if form is not None),
        ("export.push", config.export.push, PUSHED),
        ("collator.image_processing.resize_mode", config.collator.image_processing.resize_mode, RESIZE_MODES),
        ("collator.video_processing.frame_extraction.library", frames.library, VIDEO_LIBRARIES),
        ("collator.video_processing.frame_extraction.sampling_strategy", frames.sampling_strategy, SAMPLING_STRATEGIES),
        ("dataset.on_bad_sample", config.dataset.on_bad_sample, ON_BAD_SAMPLE),
        ("dataset.on_duplicates", config.dataset.on_duplicates, ON_DUPLICATES),
        ("dataset.convert", config.dataset.convert, CONVERT),
        ("dataset.box_form", config.dataset.box_form, BOX_FORMS),
        ("dataset.train_answer", config.dataset.train_answer, TRAIN_ANSWERS),
        ("evaluation.split", config.evaluation.split, SPLITS),
        ("preview.split", config.preview.split, SPLITS),
        ("evaluation.blind", config.evaluation.blind, BLINDS),
        ("evaluation.answers", config.evaluation.answers, ANSWERS),
        *(("dataset.splits", name, SPLITS) for name in config.dataset.splits),
        *(("dataset.max_examples", name, SPLITS) for name in config.dataset.max_examples),
        *(("collator.messages.role", message.role, MESSAGE_ROLES) for message in config.collator.messages),
        *(
            ("collator.messages.type", part.type, ("text", *MEDIA))
            for m in config.collator.messages
            for part in m.content
        ),
    ):
        check_choice(option, value, choices)


def check_bounds(node: Any, prefix: str = "") -> None:
    """Refuse what is outside of the bounds beside an option's default, and what is no finite number anywhere.

    Args:
        node: a dataclass of the schema.
        prefix: of the names of its options.
    """
    for item in dataclasses.fields(node):
        option, value, bounds = f"{prefix}{item.name}", getattr(node, item.name), bounds_of(item)
        if str(item.type).endswith("Any]"):  # of a library
            check_finite(option, value)
        elif dataclasses.is_dataclass(value):
            check_bounds(value, f"{option}.")
        elif isinstance(value, dict):
            for name, held in value.items():
                _check_value(f"{option}.{name}", held, bounds)
        elif isinstance(value, list):
            _check_list(option, value, bounds)
        else:
            _check_value(option, value, bounds)


def check_finite(option: str, value: Any) -> None:
    """Refuse a number that is not finite, however deep it lies."""
    if isinstance(value, Mapping):
        for name, held in value.items():
            check_finite(f"{option}.{name}", held)
    elif isinstance(value, list | tuple):
        for held in value:
            check_finite(option, held)
    elif isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{option}={value} must be a finite number.")


def check_number(option: str, value: float, bounds: Bounds) -> None:
    """Refuse a number that is out of bounds."""
    if complaint := bounds.complaint(value):
        raise UserError(f"{option}={shown(value)} {complaint}.")


def _check_list(option: str, values: Sequence[Any], bounds: Bounds) -> None:
    if len(values) < bounds.fewest:
        raise UserError(f"{option}=[] is empty: name one at least, or leave the option out.")
    for index, value in enumerate(values):
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{option}.{index}.")
        elif isinstance(value, list | dict):
            raise UserError(f"{option}={values}: {value} is no text; write {option}=[A,B].")
        else:
            _check_value(option, value, bounds)
            if bounds.distinct and value in values[:index]:
                raise UserError(f"{option}={values}: {value!r} is there twice; leave one out.")


def _check_value(option: str, value: Any, bounds: Bounds) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        check_number(option, value, bounds)
    elif isinstance(value, str) and not bounds.empty and not value.strip():
        raise UserError(f"{option}={value!r} is empty: give it a value, or leave the option out.")


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices, and name the one that was probably meant."""
    if value not in choices:
        raise UserError(
            f"{option}={shown(repr(value))} must be one of {', '.join(choices)}{closest(str(value), choices)}"
        )


def check_pattern(option: str, pattern: str) -> None:
    """Refuse a text that is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{option}={shown(repr(pattern))} is no regular expression: {error}.") from None
