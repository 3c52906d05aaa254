"""Token lengths from text and image headers alone, and what happens to examples that are too long.

No pixel is decoded for a length: how many tokens an image or a video becomes depends on its size only, so one blank
image of each size, and one blank video of each size and number of frames, is shown to the processor.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from vlmexp.collator.batch import Collator
from vlmexp.collator.encode import special_token_arguments, tokenize
from vlmexp.collator.media import ClipShape, Shape, blank_arguments, media_key, media_shape
from vlmexp.data.example import Example
from vlmexp.data.examples import ExampleSequence
from vlmexp.errors import UserError

_CHUNK = 2048  # examples tokenized at a time


class Fitted(ExampleSequence):
    """Examples that all fit into `max_length` tokens.

    Attributes:
        lengths: tokens of each example, media (and the answer, if it counts) included.
        media_lengths: how many of these stand for media.
        dropped, shortened: ids of the examples that were left out or lost the end of their question.
    """

    def __init__(self, examples: Sequence[Example], kept: Sequence[int], replaced: dict[int, Example]) -> None:
        self._examples, self._kept, self._replaced = examples, kept, replaced
        self.lengths: list[int] = []
        self.media_lengths: list[int] = []
        self.dropped: list[str] = []
        self.shortened: list[str] = []

    def __len__(self) -> int:
        return len(self._kept)

    def example(self, index: int) -> Example:
        original = self._kept[index]
        return self._replaced.get(original) or self._examples[original]

    @property
    def kept(self) -> Sequence[int]:
        """Index of each example in the sequence that it came from."""
        return self._kept


def token_lengths(collator: Collator, examples: Sequence[Example], with_answer: bool) -> list[int]:
    """Tokens that each example becomes, exactly as the collator will make them."""
    return [length for length, _ in _token_counts(collator, examples, with_answer)]


def _token_counts(collator: Collator, examples: Sequence[Example], with_answer: bool) -> list[tuple[int, int]]:
    """Tokens of each example, and how many of them stand for media."""
    media_tokens: dict[Shape, int] = {}
    shapes: dict[tuple[str, ...], Shape] = {}
    timed: bool | None = None  # whether the processor writes the times of frames, so that they count as well
    counts = []
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        raw = tokenize(
            collator.processor, [collator.template.render(e.fields, len(e.images), len(e.videos)) for e in chunk]
        )
        answers = [len(collator.answer_ids(example)) if with_answer else 0 for example in chunk]
        for example, ids, answer in zip(chunk, raw, answers, strict=True):
            media = media_key(example)
            if media not in shapes:
                shapes[media] = media_shape(example, collator.media)
            key = shapes[media]
            if timed is None and any(isinstance(size, ClipShape) for size in key):
                timed = _media_tokens(collator, example, key) != _media_tokens(collator, example, _untimed(key))
            key = key if timed else _untimed(key)
            if key not in media_tokens:
                media_tokens[key] = _media_tokens(collator, example, key)
            counts.append((len(ids) + media_tokens[key] + answer, media_tokens[key]))
    return counts


def fit(
    collator: Collator, examples: Sequence[Example], max_length: int, overlong: str, with_answer: bool = True
) -> Fitted:
    """Apply the overlong policy.

    Args:
        overlong: `error`; `drop`, which leaves the example out; or `shorten_text`, which takes tokens from the end of
            the question. Media tokens are never cut.

    Raises:
        UserError: the policy is `error` and an example is too long, or shortening is not enough.
    """
    counts = _token_counts(collator, examples, with_answer)
    lengths, media_lengths = [length for length, _ in counts], [media for _, media in counts]
    too_long = [index for index, length in enumerate(lengths) if length > max_length]
    if too_long and overlong == "error":
        worst = max(too_long, key=lengths.__getitem__)
        raise UserError(
            f"{len(too_long)} of {len(examples)} examples are longer than collator.max_length={max_length} tokens; "
            f"the longest, {examples[worst].id}, has {lengths[worst]}. Raise collator.max_length, or set "
            "collator.overlong to drop or shorten_text."
        )
    if overlong == "drop":
        dropped = set(too_long)
        kept = [index for index in range(len(examples)) if index not in dropped]
        result = Fitted(examples, kept, {})
        result.dropped = [examples[index].id for index in too_long]
        result.lengths = [lengths[index] for index in kept]
        result.media_lengths = [media_lengths[index] for index in kept]
        return result
    shortened = {index: _shortened(collator, examples[index], lengths[index] - max_length) for index in too_long}
    result = Fitted(examples, range(len(examples)), shortened)
    result.shortened = [examples[index].id for index in too_long]
    if shortened:
        again = token_lengths(collator, list(shortened.values()), with_answer)
        for index, length in zip(shortened, again, strict=True):
            lengths[index] = length
    result.lengths, result.media_lengths = lengths, media_lengths
    return result


def _shortened(collator: Collator, example: Example, excess: int) -> Example:
    """The example without the last `excess` tokens (or a few more) of its question."""
    tokenizer = collator.processor.tokenizer
    ids = tokenizer(collator.template.plain(example.fields.get("question", "")), add_special_tokens=False)["input_ids"]
    fields = dict(example.fields)
    for keep in range(len(ids) - excess, -1, -1):
        fields["question"] = tokenizer.decode(ids[:keep], skip_special_tokens=False)
        candidate = dataclasses.replace(example, fields=fields)
        if len(tokenizer(fields["question"], add_special_tokens=False)["input_ids"]) <= len(ids) - excess:
            return candidate
    raise UserError(
        f"Example {example.id} is {excess} tokens longer than collator.max_length, and its question has only "
        f"{len(ids)}: its images alone are too large. Raise collator.max_length, or set collator.overlong=drop."
    )


def _untimed(shape: Shape) -> Shape:
    """The shape with the same times for all videos of as many frames; they are much longer than real ones."""
    return tuple(
        dataclasses.replace(size, numbers=tuple(10_000_000 + n for n in range(len(size.numbers))), fps=1.0)
        if isinstance(size, ClipShape)
        else size
        for size in shape
    )


def _media_tokens(collator: Collator, example: Example, shape: Shape) -> int:
    """How many tokens media of these sizes add to an example's raw prompt.

    Raises:
        UserError: the processor refuses the size.
    """
    if not shape:
        return 0
    text = collator.template.render(example.fields, len(example.images), len(example.videos))
    options = special_token_arguments(collator.processor, text)
    try:
        inputs = collator.processor(text=[collator.template.processor_text(text)], **blank_arguments(shape), **options)
    except ValueError as error:
        sizes = ", ".join(f"{s.width} x {s.height}" if isinstance(s, ClipShape) else f"{s[0]} x {s[1]}" for s in shape)
        raise UserError(
            f"{example.place('image')}: the model's processor takes no media of {sizes} pixels ({error}). "
            "Leave the row out, or set collator.image_processing.resize_mode=stretch and max_size."
        ) from None
    expanded = inputs["input_ids"][0]
    return len(expanded) - len(tokenize(collator.processor, [text])[0])
