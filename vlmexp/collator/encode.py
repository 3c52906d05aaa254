"""Prompts and answers to token rows.

The processor sees each distinct set of media once. The other questions about the same media get their tokens from the
tokenizer alone and the expanded placeholders from the first: exactly what the processor would have given them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import ProcessorMixin

from vlmexp.collator.features import StoredFeatures, without_pixels
from vlmexp.collator.media import MediaOptions, blank_arguments, media_arguments, media_key, media_shape
from vlmexp.collator.prompt import PromptTemplate
from vlmexp.collator.said import placeholders, said_tokens
from vlmexp.data.example import Example
from vlmexp.errors import UserError


@dataclass
class Row:
    """One example as tokens. `sequences` holds every per-token input that the processor gave, `input_ids` included.

    `sequences[name]` has one value a token, all of the same length; the answer begins at `prompt_length`, and `said` is
    where the assistant has spoken before.
    """

    sequences: dict[str, list[int]]
    prompt_length: int
    media_key: tuple[str, ...]
    media_end: int  # index after the last token that the media expanded to; 0 without media
    said: tuple[range, ...] = ()

    def __len__(self) -> int:
        return len(self.sequences["input_ids"])


Processed = tuple[list[Row], dict[str, torch.Tensor]]  # prompts' rows, and the inputs that are not of a token each


def encode_prompts(
    processor: ProcessorMixin,
    template: PromptTemplate,
    examples: Sequence[Example],
    once_per_media: bool,
    options: MediaOptions,
    media_ids: Collection[int],
    features: StoredFeatures | None = None,
) -> tuple[list[Row], dict[str, torch.Tensor]]:
    """Token rows of the prompts, and the media inputs of the batch.

    With `once_per_media` the media inputs hold each distinct set of media once, in the order of first appearance;
    without it once an example. Media that stand behind other words are another set.

    Args:
        media_ids: the tokens that stand for media.
        features: where they are there for all media of the batch, they stand in the place of pixels, and no picture is
            decoded.
    """
    prompts = [template.prompt(example) for example in examples]
    texts = [prompt.text for prompt in prompts]
    keys = [sharing_key(template, example, text, options) for example, text in zip(examples, texts, strict=True)]
    raw = tokenize(processor, texts)
    first: dict[tuple[str, ...], int] = {}
    if once_per_media:
        for index, key in enumerate(keys):
            if key:
                first.setdefault(key, index)
    chosen = list(first.values()) if once_per_media else [i for i, key in enumerate(keys) if key]
    rows: list[Row | None] = [None] * len(examples)
    media: list[dict[str, torch.Tensor]] = []
    given = features.given([examples[index] for index in chosen], options) if features and chosen else None

    def processed(together: list[int], arguments: dict[str, Any]) -> Processed:
        its = [raw[index] for index in together]
        return _processed(processor, template, [texts[index] for index in together], its, arguments, media_ids)

    for together in [[index] for index in chosen] if given else _calls(examples, chosen):
        if features and given:
            shape, head = media_shape(examples[together[0]], options), template.head(texts[together[0]])
            blank = partial(processed, together, blank_arguments(shape))
            made, inputs = _of_sizes(features, (shape, head), raw[together[0]], blank)
        else:
            made, inputs = processed(together, media_arguments([examples[index] for index in together], options))
        media.append(inputs)
        for index, its_row in zip(together, made, strict=True):
            its_row.media_key = keys[index]
            rows[index] = its_row
    for index, row in enumerate(rows):
        if row is None and keys[index]:
            source = first[keys[index]]
            rows[index] = _with_media_of(rows[source], raw[source], raw[index])
        elif row is None:
            rows[index] = Row(
                {"input_ids": raw[index], "attention_mask": [1] * len(raw[index])}, len(raw[index]), (), 0
            )
    complete = [row for row in rows if row is not None]
    for row, prompt, ids in zip(complete, prompts, raw, strict=True):
        if prompt.said:
            offsets = _offsets(processor, prompt.text)
            marks = [match.span() for match in placeholders(processor).finditer(prompt.text)]
            row.said = said_tokens(prompt.said, offsets, marks, ids, row.sequences["input_ids"])
    _fill_missing_sequences(complete)
    return complete, _joined(media) | (given or {})


def _processed(
    processor: ProcessorMixin,
    template: PromptTemplate,
    texts: Sequence[str],
    raw: Sequence[list[int]],
    arguments: dict[str, Any],
    media_ids: Collection[int],
) -> Processed:
    """What the processor makes of prompts with their media: rows, and the inputs that are not of a token each."""
    batch = processor(
        text=[template.processor_text(text) for text in texts],
        padding=True, padding_side="right", return_tensors="pt",
        **arguments,
        **special_token_arguments(processor, texts[0]),
    )  # fmt: skip
    sequences, inputs = _split(batch)
    rows = []
    for position, ids in enumerate(raw):
        length = int(sequences["attention_mask"][position].sum())
        tokens = {name: values[position, :length].tolist() for name, values in sequences.items()}
        rows.append(Row(tokens, length, (), _media_end(ids, tokens["input_ids"], media_ids)))
    return rows, inputs


def _of_sizes(features: StoredFeatures, key: Any, raw: list[int], blank: Callable[[], Processed]) -> Processed:
    """A row with the tokens of its media, and the inputs that depend on sizes alone.

    Args:
        key: the sizes of the media and the text up to their end, for which tokens are made once.
        raw: the prompt's tokens, placeholders not expanded.
        blank: makes them of black media of these sizes.
    """
    if key not in features.rows or not _begins_alike(*features.rows[key][:2], raw):
        (row,), inputs = blank()
        features.remember(key, (row, raw, without_pixels(inputs)))
    features.rows.move_to_end(key)
    source, source_raw, sizes = features.rows[key]
    return [_with_media_of(source, source_raw, raw)], sizes


def _begins_alike(source: Row, source_raw: list[int], raw: list[int]) -> bool:
    head = len(source_raw) - (source.prompt_length - source.media_end)
    return raw[:head] == source_raw[:head]


def sharing_key(template: PromptTemplate, example: Example, text: str, options: MediaOptions) -> tuple[str, ...]:
    """Equal for examples with the same prompt up to the end of the same media; empty without any.

    Args:
        text: the example's prompt.
    """
    key = media_key(example, options)
    return (*key, template.head(text)) if key else ()


def append_answer(row: Row, answer_ids: list[int], token_type: int) -> Row:
    """The row with the answer's tokens after the prompt; other per-token inputs continue as text.

    Args:
        token_type: what `token_type_ids` say of an answer; PaliGemma leaks the answer to the prompt unless it is 1.
    """
    text = {"attention_mask": 1, "token_type_ids": token_type}
    sequences = {
        name: values + (answer_ids if name == "input_ids" else [text.get(name, 0)] * len(answer_ids))
        for name, values in row.sequences.items()
    }
    return Row(sequences, row.prompt_length, row.media_key, row.media_end, row.said)


def tokenize(processor: ProcessorMixin, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered prompts, placeholders not expanded."""
    if not texts:
        return []
    ids = processor.tokenizer(list(texts), **special_token_arguments(processor, texts[0]))["input_ids"]
    return [list(row) for row in ids]


def _offsets(processor: ProcessorMixin, text: str) -> list[tuple[int, int]]:
    """First character of each token, and the one behind its last.

    Raises:
        UserError: the tokenizer does not tell them.
    """
    tokenizer = processor.tokenizer
    if not tokenizer.is_fast:
        raise UserError(
            f"{type(tokenizer).__name__} does not tell which characters a token is made of, without which the turns of "
            "a conversation cannot be told apart: choose a model with a fast tokenizer, or data with one answer."
        )
    options = special_token_arguments(processor, text)
    return [tuple(pair) for pair in tokenizer(text, return_offsets_mapping=True, **options)["offset_mapping"]]


def special_token_arguments(processor: ProcessorMixin, prompt: str) -> dict[str, Any]:
    """What to tell the tokenizer: a chat template that writes the BOS token itself must not get a second one."""
    bos = processor.tokenizer.bos_token
    return {"add_special_tokens": False} if bos and prompt.startswith(bos) else {}


def _calls(examples: Sequence[Example], chosen: list[int]) -> list[list[int]]:
    """Which examples the processor sees at once: all, but with videos each alone.

    Some processors cannot batch videos of different lengths, or write the longest one's length into every prompt.
    """
    if any(examples[index].videos for index in chosen):
        return [[index] for index in chosen]
    return [chosen] if chosen else []


def _split(batch: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Per-token inputs (the shape of input_ids) and the others; a processor's own labels are of no use."""
    values = {name: value for name, value in batch.items() if name != "labels"}
    shape = batch["input_ids"].shape
    sequences = {name: value for name, value in values.items() if getattr(value, "shape", None) == shape}
    return sequences, {name: value for name, value in values.items() if name not in sequences}


def _joined(calls: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """The media inputs of all calls, one behind the other; but for the first, dimensions are padded with zeros."""
    if len(calls) == 1:
        return calls[0]
    joined = {}
    for name in dict.fromkeys(name for inputs in calls for name in inputs):
        values = [inputs[name] for inputs in calls if name in inputs]
        shape = map(max, zip(*(value.shape[1:] for value in values), strict=True))
        joined[name] = values[0].new_zeros(sum(map(len, values)), *shape)
        for value, place in zip(values, joined[name].split([len(value) for value in values]), strict=True):
            place[(slice(None), *map(slice, value.shape[1:]))] = value
    return joined


def _common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    length = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        length += 1
    return length


def _media_end(raw: list[int], expanded: list[int], media_ids: Collection[int]) -> int:
    """Index in `expanded` after the last token that a placeholder became, be it of text or its own."""
    last = max((index + 1 for index, token in enumerate(expanded) if token in media_ids), default=0)
    if raw == expanded:
        return last
    prefix = _common_prefix(raw, expanded)
    suffix = _common_prefix(raw[prefix:][::-1], expanded[::-1])
    return max(last, len(expanded) - suffix)


def _with_media_of(source: Row | None, source_raw: list[int], raw: list[int]) -> Row:
    """The row of another question about the same media."""
    assert source is not None
    tail = source.prompt_length - source.media_end  # text tokens after the media, in the source's prompt
    head = len(source_raw) - tail
    if raw[:head] != source_raw[:head]:
        raise RuntimeError("two prompts about the same media differ before the media's end")
    text = raw[head:]
    sequences = {
        name: values[: source.media_end]
        + (text if name == "input_ids" else [values[source.prompt_length - 1]] * len(text))
        for name, values in source.sequences.items()
    }
    return Row(sequences, source.media_end + len(text), source.media_key, source.media_end)


def _fill_missing_sequences(rows: list[Row]) -> None:
    """Give rows without media the per-token inputs that rows with media have."""
    names = {name for row in rows for name in row.sequences}
    for row in rows:
        for name in names - row.sequences.keys():
            row.sequences[name] = [0] * len(row)
