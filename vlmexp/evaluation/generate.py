"""Batched answers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from transformers import PreTrainedModel

from vlmexp.collator.batch import Collator
from vlmexp.data.example import Example
from vlmexp.evaluation.batches import AHEAD, answer_in_batches, by_image, by_length, share_of
from vlmexp.evaluation.decoding import decoding, generate, stops
from vlmexp.evaluation.reasoning import REASONING_TAGS, without_reasoning
from vlmexp.evaluation.shared_prefix import on_device, shared_answers, until_end
from vlmexp.models.ends import end_ids


class Reply(NamedTuple):
    """A model's answer; `cut`: it came to the limit of its length without an end; `said`: with its reasoning."""

    text: str
    cut: bool = False
    said: str = ""


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
    packed: bool = False,
    rank: int = 0,
    ranks: int = 1,
    skip: Collection[int] = (),
    on_batch: Callable[[Mapping[int, Reply]], None] | None = None,
    seed: int = 0,
    ahead: int = AHEAD,
    reasoning_tags: Sequence[str] = REASONING_TAGS,
) -> list[str]:
    """The model's answer to each example, in the examples' order; of several ranks, to those of this rank's batches.

    Batches hold prompts of like length (`lengths`, in tokens), padded on the left, or with `share_images` all questions
    about an image together; the answers are the same. A thread prepares the next batches meanwhile.

    Of the checkpoint's own generation_config nothing counts but the tokens that end an answer.

    Args:
        options: further fields of transformers.GenerationConfig, which sharing does not take; without any, decoding is
            greedy. An answer ends before the first of `stop_strings`.
        packed: with `share_images`, read prompts without padding.
        rank: this one of `ranks` processes, which take the batches in turn; the answers of the others are empty.
        skip: indices of examples that are not asked; their answers are empty.
        on_batch: is given index -> reply of each batch as soon as it is there.
        seed: of answers that are drawn (`do_sample`), which leave torch's random state as it was.
        ahead: batches that are prepared beforehand; 0: no thread.
        reasoning_tags: names of tags; what stands between them is no part of an answer.
    """
    ends = _end_ids(model, collator)
    config = decoding(options or {}, max_new_tokens, collator.pad_id, ends)
    share_images = share_images and not options
    tokenizer = copy.deepcopy(collator.processor.tokenizer)  # the thread uses the collator's own at the same time

    def prepare(batch: list[int]) -> Any:
        rows = [examples[index] for index in batch]
        return collator.packed_prompts(rows) if share_images else collator.prompts(rows)

    def answer(batch: list[int], inputs: Any) -> list[Reply]:
        if share_images:
            rows = shared_answers(model, inputs, max_new_tokens, ends, packed)
            cut = [len(row) == max_new_tokens for row in rows]
        else:
            inputs = {name: on_device(value, model) for name, value in inputs.items()}
            with _seeded(seed + batch[0]) if config.do_sample else contextlib.nullcontext():
                rows = generate(model, inputs, config, tokenizer).tolist()
            cut = [set(ends).isdisjoint(row) for row in rows]
            rows = [until_end(row, ends) for row in rows]  # an end need not be a token that decoding skips
        texts = [collator.template.control.said(tokenizer, row) for row in rows]
        return [_reply(text, is_cut, stops(config), reasoning_tags) for text, is_cut in zip(texts, cut, strict=True)]

    batches = by_image(examples, lengths, batch_size) if share_images else by_length(lengths, batch_size)
    own = share_of(batches, skip, rank, ranks)
    answers = answer_in_batches(model, own, prepare, answer, description, on_batch, ahead)
    return [answers[index].text if index in answers else "" for index in range(len(examples))]


def _reply(text: str, cut: bool, stop_strings: Collection[str], reasoning_tags: Sequence[str]) -> Reply:
    """The text before the first of the stop strings, of which one has ended it as well as an end would."""
    found = [place for stop in stop_strings if (place := text.find(stop)) >= 0]
    said = text[: min(found)].strip() if found else text.strip()
    return Reply(without_reasoning(said, reasoning_tags), cut and not found, said)


@contextlib.contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _end_ids(model: PreTrainedModel, collator: Collator) -> list[int]:
    return end_ids(model, collator.processor.tokenizer, collator.end_id)
