"""Batched greedy answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from vlmexp.collator.batch import Collator
from vlmexp.data.example import Example


@torch.inference_mode()
def generate_answers(
    model: Any,
    collator: Collator,
    examples: Sequence[Example],
    lengths: Sequence[int],
    batch_size: int,
    max_new_tokens: int,
    options: Mapping[str, Any] | None = None,
    description: str = "evaluate",
) -> list[str]:
    """The model's answer to each example, in the examples' order.

    Batches hold prompts of like length (`lengths`, in tokens), padded on the left.

    Args:
        options: further fields of transformers.GenerationConfig; without any, decoding is greedy.
    """
    config = GenerationConfig(
        **{"do_sample": False, "max_new_tokens": max_new_tokens, "pad_token_id": collator.pad_id, **(options or {})}
    )
    config.eos_token_id = _end_ids(model, collator)
    order = sorted(range(len(examples)), key=lambda index: -lengths[index])
    answers = [""] * len(examples)
    was_training = model.training
    model.eval()
    with tqdm(total=len(order), desc=description, unit=" questions", mininterval=0.5) as bar:
        for start in range(0, len(order), batch_size):
            chosen = order[start : start + batch_size]
            batch = collator.prompts([examples[index] for index in chosen])
            inputs = {name: _on_device(value, model) for name, value in batch.items()}
            output = model.generate(**inputs, generation_config=config)
            tokens = output[:, inputs["input_ids"].shape[1] :]
            texts = collator.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text.strip()
            bar.update(len(chosen))
    model.train(was_training)
    return answers


def _end_ids(model: PreTrainedModel, collator: Collator) -> list[int]:
    """Every token that ends an answer: the collator's and those of the checkpoint."""
    known = getattr(model.generation_config, "eos_token_id", None)
    ends = known if isinstance(known, list) else [] if known is None else [known]
    return sorted({*ends, collator.end_id} - {None})


def _on_device(value: torch.Tensor, model: PreTrainedModel) -> torch.Tensor:
    value = value.to(model.device)
    return value.to(model.dtype) if value.is_floating_point() else value
