"""From the config to the parts that more than one stage needs."""

from __future__ import annotations

import dataclasses

import torch
from transformers import ProcessorMixin

from vlmexp.collator.batch import Collator, Masking
from vlmexp.collator.prompt import ChatMessage, MessagePart, PromptTemplate
from vlmexp.config import Config
from vlmexp.data.example import MEDIA_ROLES
from vlmexp.models.load import ModelSource


def set_threads(config: Config) -> None:
    """Limit torch's CPU threads if the config does."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)


def model_source(config: Config) -> ModelSource:
    """The `model` group as the arguments of loading."""
    names = [field.name for field in dataclasses.fields(ModelSource)]
    return ModelSource(**{name: getattr(config.model, name) for name in names})


def build_collator(config: Config, processor: ProcessorMixin, share_images: bool = False) -> Collator:
    """The collator of the config around a processor."""
    messages = [
        ChatMessage(message.role, tuple(MessagePart(part.type, part.text or "") for part in message.content))
        for message in config.collator.messages
    ]
    roles = [role for role, column in config.dataset.columns.items() if column and role not in ("answer", *MEDIA_ROLES)]
    masking = config.collator.label_masking
    return Collator(
        processor=processor,
        template=PromptTemplate(processor, messages, config.collator.system_prompt, roles),
        masking=Masking(
            pad=masking.mask_pad_token,
            media=masking.mask_image_token,
            prompt=masking.mask_input_tokens,
            ignore_index=masking.ignore_index,
        ),
        share_images=share_images,
        end_of_turn=config.model.end_of_turn,
    )
