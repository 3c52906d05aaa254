"""Batched answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel

from vlmexp.collator.batch import Collator
from vlmexp.collator.media import media_key
from vlmexp.data.example import Example
from vlmexp.evaluation.shared_prefix import on_device, shared_answers

# A checkpoint's own generation_config.json fills in what is not said here; Qwen2-VL's, for one, penalises repetition.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}


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
    share_images: bool = False,
    rank: int = 0,
    ranks: int = 1,
) -> list[str]:
    """The model's answer to each example, in the examples' order; of several ranks, to those of this rank's batches.

    Batches hold prompts of like length (`lengths`, in tokens), padded on the left, or with `share_images` all questions
    about an image together; the answers are the same.

    Args:
        options: further fields of transformers.GenerationConfig, which sharing does not take; without any, decoding is
            greedy.
        rank: this one of `ranks` processes, which take the batches in turn; the answers of the others are empty.
    """
    config = GenerationConfig(
        **{**GREEDY, "max_new_tokens": max_new_tokens, "pad_token_id": collator.pad_id, **(options or {})}
    )
    config.eos_token_id = _end_ids(model, collator)
    share_images = share_images and not options
    batches = by_image(examples, lengths, batch_size) if share_images else by_length(lengths, batch_size)
    batches = batches[rank::ranks]
    answers = [""] * len(examples)
    was_training = model.training
    model.eval()
    with tqdm(total=sum(map(len, batches)), desc=description, unit=" questions", mininterval=0.5) as bar:
        for chosen in batches:
            rows = [examples[index] for index in chosen]
            if share_images:
                tokens = shared_answers(model, collator, rows, max_new_tokens, config.eos_token_id)
            else:
                inputs = {name: on_device(value, model) for name, value in collator.prompts(rows).items()}
                output = model.generate(**inputs, generation_config=config)
                tokens = output[:, inputs["input_ids"].shape[1] :]
            texts = collator.processor.tokenizer.batch_decode(tokens, skip_special_tokens=True)
            for index, text in zip(chosen, texts, strict=True):
                answers[index] = text.strip()
            bar.update(len(chosen))
    model.train(was_training)
    return answers


def by_length(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of like length, the longest first."""
    order = sorted(range(len(lengths)), key=lambda index: -lengths[index])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def by_image(examples: Sequence[Example], lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Indices in batches of up to `batch_size` questions, those about an image side by side.

    Images with as many questions and of like length stand together, so that there is little padding; the largest come
    first.
    """
    groups: dict[tuple[str, ...] | int, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(media_key(example) or index, []).append(index)
    pieces = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
    pieces.sort(key=lambda piece: (-len(piece), -max(lengths[index] for index in piece)))
    batches: list[list[int]] = []
    for piece in pieces:
        if not batches or len(batches[-1]) + len(piece) > batch_size:
            batches.append([])
        batches[-1] += piece
    return batches


def _end_ids(model: PreTrainedModel, collator: Collator) -> list[int]:
    """Every token that ends an answer: the collator's and those of the checkpoint."""
    known = getattr(model.generation_config, "eos_token_id", None)
    ends = known if isinstance(known, list) else [] if known is None else [known]
    return sorted({*ends, collator.end_id} - {None})
