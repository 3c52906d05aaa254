"""Batched answers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from vlmexp.collator.batch import Collator
from vlmexp.data.example import Example
from vlmexp.evaluation.batches import AHEAD, answer_in_batches, by_image, by_length, share_of
from vlmexp.evaluation.shared_prefix import on_device, shared_answers, until_end
from vlmexp.models.ends import end_ids

# A checkpoint's own generation_config.json fills in what is not said here; Qwen2-VL's, for one, penalises repetition.
GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_length": 0}


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
    skip: Collection[int] = (),
    on_batch: Callable[[Mapping[int, str]], None] | None = None,
    seed: int = 0,
    ahead: int = AHEAD,
) -> list[str]:
    """The model's answer to each example, in the examples' order; of several ranks, to those of this rank's batches.

    Batches hold prompts of like length (`lengths`, in tokens), padded on the left, or with `share_images` all questions
    about an image together; the answers are the same. A thread prepares the next batches meanwhile.

    Args:
        options: further fields of transformers.GenerationConfig, which sharing does not take; without any, decoding is
            greedy.
        rank: this one of `ranks` processes, which take the batches in turn; the answers of the others are empty.
        skip: indices of examples that are not asked; their answers are empty.
        on_batch: is given index -> answer of each batch as soon as it is there.
        seed: of answers that are drawn (`do_sample`), which leave torch's random state as it was.
        ahead: batches that are prepared beforehand; 0: no thread.
    """
    config = GenerationConfig(
        **{**GREEDY, "max_new_tokens": max_new_tokens, "pad_token_id": collator.pad_id, **(options or {})}
    )
    ends = config.eos_token_id = _end_ids(model, collator)
    share_images = share_images and not options
    tokenizer = copy.deepcopy(collator.processor.tokenizer)  # the thread uses the collator's own at the same time

    def prepare(batch: list[int]) -> Any:
        rows = [examples[index] for index in batch]
        return collator.packed_prompts(rows) if share_images else collator.prompts(rows)

    def answer(batch: list[int], inputs: Any) -> list[str]:
        if share_images:
            tokens: Any = shared_answers(model, inputs, max_new_tokens, ends)
        else:
            inputs = {name: on_device(value, model) for name, value in inputs.items()}
            with _seeded(seed + batch[0]) if config.do_sample else contextlib.nullcontext():
                output = model.generate(**inputs, generation_config=config)
            said = output[:, inputs["input_ids"].shape[1] :].tolist()
            tokens = [until_end(ids, ends) for ids in said]  # an end need not be a token that decoding skips
        return [collator.template.control.said(tokenizer, ids) for ids in tokens]

    batches = by_image(examples, lengths, batch_size) if share_images else by_length(lengths, batch_size)
    own = share_of(batches, skip, rank, ranks)
    answers = answer_in_batches(model, own, prepare, answer, description, on_batch, ahead)
    return [answers.get(index, "") for index in range(len(examples))]


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _end_ids(model: PreTrainedModel, collator: Collator) -> list[int]:
    return end_ids(model, collator.processor.tokenizer, collator.end_id)
