"""Options that have one of a few values, or a number in a range."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vlmexp.config import MEDIA, SPLITS, Config
from vlmexp.errors import UserError, closest

DTYPES = ("bfloat16", "float16", "float32")
OVERLONG = ("error", "drop", "shorten_text", "shrink_image")
MESSAGE_ROLES = ("system", "user", "assistant", "conversation")
ANSWER_FOLLOWS = ("finished_turn", "generation_prompt")
SHARE_IMAGES = ("auto", "always", "never")
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


def check_choices(config: Config) -> None:
    """Refuse what is none of the possible values."""
    frames = config.collator.video_processing.frame_extraction
    for option, value, choices in (
        ("model.dtype", config.model.dtype, DTYPES),
        ("model.prompt_style", config.model.prompt_style, PROMPT_STYLES),
        *(("model.media", medium, MEDIA) for medium in config.model.media),
        ("collator.overlong", config.collator.overlong, OVERLONG),
        ("collator.answer_follows", config.collator.answer_follows, ANSWER_FOLLOWS),
        ("collator.share_images", config.collator.share_images, SHARE_IMAGES),
        ("tracking.report_to", config.tracking.report_to, TRACKERS),
        *(("tracking.mode", mode, WANDB_MODES) for mode in [config.tracking.mode] if mode is not None),
        ("export.push", config.export.push, PUSHED),
        ("collator.image_processing.resize_mode", config.collator.image_processing.resize_mode, RESIZE_MODES),
        ("collator.video_processing.frame_extraction.library", frames.library, VIDEO_LIBRARIES),
        ("collator.video_processing.frame_extraction.sampling_strategy", frames.sampling_strategy, SAMPLING_STRATEGIES),
        ("dataset.on_bad_sample", config.dataset.on_bad_sample, ON_BAD_SAMPLE),
        ("dataset.on_duplicates", config.dataset.on_duplicates, ON_DUPLICATES),
        ("dataset.convert", config.dataset.convert, CONVERT),
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


def check_numbers(config: Config) -> None:
    """Refuse numbers that are too small, and shares outside of 0 to 1."""
    frames = config.collator.video_processing.frame_extraction
    for option, number, least in (
        ("collator.max_length", config.collator.max_length, 1),
        ("collator.image_processing.max_size", config.collator.image_processing.max_size, 1),
        ("collator.video_processing.frame_extraction.num_frames", frames.num_frames, 1),
        ("evaluation.batch_size", config.evaluation.batch_size, 1),
        ("evaluation.max_examples", config.evaluation.max_examples, 1),
        ("evaluation.blind_examples", config.evaluation.blind_examples, 1),
        ("evaluation.max_new_tokens", config.evaluation.max_new_tokens, 1),
        ("evaluation.max_choices", config.evaluation.max_choices, 2),
        ("evaluation.invariance_examples", config.evaluation.invariance_examples, 0),
        ("dataset.max_new_tokens", config.dataset.max_new_tokens, 1),
        ("export.parity_examples", config.export.parity_examples, 0),
        ("preview.examples", config.preview.examples, 1),
        ("preview.rows", config.preview.rows, 1),
        ("threads", config.threads, 1),
        ("dataset.decode_memory_mib", config.dataset.decode_memory_mib, 64),
        ("collator.image_processing.max_pixels", config.collator.image_processing.max_pixels, 1),
        ("seed", config.seed, 0),
        ("tracking.predictions", config.tracking.predictions, 0),
        *((f"dataset.max_examples.{name}", number, 1) for name, number in config.dataset.max_examples.items()),
    ):
        if number is not None and number < least:
            raise UserError(f"{option}={number} must be at least {least}.")
    for option, most in (
        ("dataset.decode_timeout_s", config.dataset.decode_timeout_s),
        ("dataset.max_file_gib", config.dataset.max_file_gib),
    ):
        if not 0 < most < math.inf:
            raise UserError(f"{option}={most} must be more than 0, and finite.")
    duration = config.collator.video_processing.file_processing.max_duration
    for option, amount in (("frame_extraction.fps", frames.fps), ("file_processing.max_duration", duration)):
        if amount is not None and amount <= 0:
            raise UserError(f"collator.video_processing.{option}={amount} must be more than 0.")
    for option, fraction in (
        ("dataset.max_bad_share", config.dataset.max_bad_share),
        ("dataset.validation_fraction", config.dataset.validation_fraction),
        ("dataset.test_fraction", config.dataset.test_fraction),
    ):
        if not 0 <= fraction < 1:
            raise UserError(f"{option}={fraction} must be at least 0 and less than 1.")


def check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value that is none of the choices, and name the one that was probably meant."""
    if value not in choices:
        raise UserError(f"{option}={value!r} must be one of {', '.join(choices)}{closest(str(value), choices)}")
