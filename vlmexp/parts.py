"""From the config to the parts that more than one stage needs."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence

import numpy as np
import peft
import torch
from transformers import ProcessorMixin

from vlmexp.collator.batch import Collator, Masking
from vlmexp.collator.boxes import Notation, check_notation
from vlmexp.collator.media import MediaOptions
from vlmexp.collator.messages import ChatMessage, message_part
from vlmexp.collator.prompt import PromptTemplate
from vlmexp.collator.remarks import remarks
from vlmexp.config import Config, PeftExtras, library_options, peft_extras, used_columns
from vlmexp.data.example import prompt_fields
from vlmexp.data.images import ImageOptions
from vlmexp.data.videos import VideoOptions
from vlmexp.errors import UserError
from vlmexp.models.adapter import peft_config
from vlmexp.models.load import ModelSource
from vlmexp.models.modules import ModulePatterns


def set_threads(config: Config) -> None:
    """Limit torch's CPU threads if the config does, and let the libraries log where the run does."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    for library in (
        "transformers",
        "huggingface_hub",
    ):  # with handlers of their own they would print past the run's log
        logger = logging.getLogger(library)
        logger.handlers.clear()
        logger.propagate = True


def model_source(config: Config) -> ModelSource:
    """The `model` group as the arguments of loading."""
    names = [field.name for field in dataclasses.fields(ModelSource) if hasattr(config.model, field.name)]
    values = {name: getattr(config.model, name) for name in names}
    return ModelSource(**{**values, "modules": module_patterns(config)}, quantization=peft_extras(config).quantization)


def module_patterns(config: Config) -> ModulePatterns:
    """How the model's parts are found among its modules."""
    given = {name: value for name, value in dataclasses.asdict(config.model.modules).items() if value is not None}
    return ModulePatterns(**given)


def adapter_config(config: Config) -> peft.PeftConfig | None:
    """The PEFT configuration; None for full fine-tuning."""
    return peft_config(peft_extras(config).config_class, library_options(config.peft, PeftExtras))


def media_options(config: Config) -> MediaOptions:
    """How images and videos are decoded."""
    video = config.collator.video_processing
    options = {**dataclasses.asdict(video.frame_extraction), **dataclasses.asdict(video.file_processing)}
    return MediaOptions(ImageOptions(**dataclasses.asdict(config.collator.image_processing)), VideoOptions(**options))


def build_collator(config: Config, processor: ProcessorMixin, share_images: bool = False) -> Collator:
    """The collator of the config around a processor."""
    messages = [
        ChatMessage(
            message.role,
            tuple(message_part(part.type, part.text or "", config.dataset.prompt) for part in message.content),
        )
        for message in config.collator.messages
    ]
    # Where the user has not said what to say, rows without choices have an instruction of their own.
    is_own = config.collator.system_prompt != config.dataset.instruction
    columns = used_columns(config)
    roles = prompt_fields(columns)
    masking = config.collator.label_masking
    collator = Collator(
        processor=processor,
        template=PromptTemplate(
            processor,
            messages,
            config.collator.system_prompt,
            roles,
            config.model.prompt_style,
            config.collator.template_options,
            config.collator.answer_follows,
            config.model.end_of_turn,
            None if is_own else config.dataset.open_instruction,
        ),
        masking=Masking(
            pad=masking.mask_pad_token,
            media=masking.mask_image_token,
            prompt=masking.mask_input_tokens,
            ignore_index=masking.ignore_index,
        ),
        media=media_options(config),
        share_images=share_images,
        end_of_turn=config.model.end_of_turn,
        boxes=Notation(**dataclasses.asdict(config.model.boxes)),
    )
    if "box" in columns:
        check_notation(collator.views, collator.template.plain)
    return collator


def note_texts(collator: Collator, found: np.ndarray, split: str, note: Callable[[str], None]) -> None:
    """Say what is done to prompts and texts that nobody has asked for by an option.

    Args:
        found: [examples] what is found in their texts, see vlmexp.collator.remarks.
        split: where they are from.
    """
    form, masking = collator.template.answer_form, collator.masking
    if form.asked or form.finished:
        note(
            f"The chat template of this checkpoint ends its prompt in {form.asked!r}, and a finished turn has "
            f"{form.finished!r} before the answer. Answers are trained and asked for behind what "
            f"collator.answer_follows={collator.template.answer_follows} names."
        )
    if collator.template.is_prefix and not masking.prompt:
        note(
            "collator.label_masking.mask_input_tokens=false: the model reads the prefix in both directions "
            "(model.prompt_style=prefix), so there is no loss on it; the answers alone are trained."
        )
    for remark in remarks(found, collator.template):
        note(f"{split}: {remark}")


def refused_share(config: Config) -> float:
    """The largest share of examples that may be left out because the processor refuses their media."""
    return config.dataset.max_bad_share if config.dataset.on_bad_sample == "skip" else 0.0


def shares_images(config: Config, collator: Collator, keys: Sequence[str] | np.ndarray, with_loss: bool) -> bool:
    """What `collator.share_images` comes to before the model is there: `auto` shares where there is something to share.

    Whether it is exact with this model may remain to be tried (`model.shared_image_prefix=auto`).

    Args:
        keys: one value for each example, equal for examples about the same media.
        with_loss: whether the batches are for training.

    Raises:
        UserError: it is `always` and not possible.
    """
    wanted = config.collator.share_images
    reasons = reasons_not_to_share(config, collator, with_loss)
    if wanted == "always" and reasons:
        raise UserError(f"collator.share_images=always is not possible here: {'; '.join(reasons)}.")
    return wanted != "never" and not reasons and (wanted == "always" or len(np.unique(keys)) < len(keys))


def reasons_not_to_share(config: Config, collator: Collator, with_loss: bool) -> list[str]:
    """Why several texts behind one prefix would not be exact here; empty where they are."""
    reasons = []
    if str(config.model.shared_image_prefix).lower() == "false":
        reasons.append("model.shared_image_prefix is false: this model's attention or positions do not allow it")
    if not collator.template.media_first and not collator.template.has_conversation:
        reasons.append("collator.messages put text of the question before the image, or show no image")
    if collator.template.has_conversation:
        reasons.append("dataset.columns.messages holds whole conversations, of which each has its own")
    elif with_loss and collator.template.has_earlier_answers:
        reasons.append("collator.messages have several turns of the assistant, each with a loss")
    if with_loss and not config.collator.label_masking.mask_input_tokens:
        reasons.append("collator.label_masking.mask_input_tokens is false")
    takes_masks = not (config.model.attn_implementation or "sdpa").startswith("flash")
    wants_packing = packs(config) if with_loss else config.collator.packing != "never"
    if not takes_masks and not wants_packing:
        reasons.append(f"model.attn_implementation={config.model.attn_implementation} takes no mask of this form")
    return reasons


def tries_sharing(config: Config) -> bool:
    """Whether sharing an image's prefix, with padding, has to be tried with the model itself before it is done."""
    takes_masks = not (config.model.attn_implementation or "sdpa").startswith("flash")
    return str(config.model.shared_image_prefix).lower() == "auto" or not takes_masks


def packs(config: Config) -> bool:
    """Whether batches without padding are wanted, and mean the same as padded ones."""
    has_noise = config.train.get("neftune_noise_alpha") is not None  # which goes by the tokens of a row
    is_compiled = bool(config.train.get("torch_compile"))  # what is tried would not be what runs
    no_loss_on_padding = config.collator.label_masking.mask_pad_token
    return config.collator.packing != "never" and no_loss_on_padding and not has_noise and not is_compiled
