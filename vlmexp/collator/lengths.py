"""Token lengths from text and image headers alone, and what happens to examples that are too long.

No pixel is decoded for a length: how many tokens an image or a video becomes depends on its size only (see
vlmexp.collator.media_tokens).
"""

from __future__ import annotations

from collections.abc import Sequence

from vlmexp.collator.batch import Collator
from vlmexp.collator.encode import tokenize
from vlmexp.collator.media import Shape, media_key, media_shape
from vlmexp.collator.media_tokens import MediaTokens
from vlmexp.collator.shrink import shrunk
from vlmexp.data.example import Example
from vlmexp.data.examples import ExampleSequence
from vlmexp.errors import UserError

_CHUNK = 2048  # examples tokenized at a time
KEEPING_ALL = {"drop": "shorten_text"}  # policies instead of others where every example counts


class Fitted(ExampleSequence):
    """Examples that all fit into `max_length` tokens.

    Attributes:
        lengths: tokens of each example, media (and the answer, if it counts) included.
        media_lengths: how many of these stand for media.
        dropped, shortened, shrunk: ids of the examples that were left out, lost the end of their question, or got
            smaller images.
    """

    def __init__(self, examples: Sequence[Example], kept: Sequence[int], replaced: dict[int, Example]) -> None:
        self._examples, self._kept, self._replaced = examples, kept, replaced
        self.lengths: list[int] = []
        self.media_lengths: list[int] = []
        self.dropped: list[str] = []
        self.shortened: list[str] = []
        self.shrunk: list[str] = []

    def __len__(self) -> int:
        return len(self._kept)

    def example(self, index: int) -> Example:
        original = self._kept[index]
        return self._replaced.get(original) or self._examples[original]

    @property
    def kept(self) -> Sequence[int]:
        """Index of each example in the sequence that it came from."""
        return self._kept

    def media_keys(self, keys: Sequence[str]) -> list[str]:
        """For each example, a text that is equal for examples with the same media at the same size.

        Args:
            keys: the same of each example of the sequence that these came from, whatever the size.
        """
        limits = {index: example.media_limit for index, example in self._replaced.items()}
        return [f"{keys[index]} {limit}" if (limit := limits.get(index)) else keys[index] for index in self._kept]


def token_lengths(collator: Collator, examples: Sequence[Example], with_answer: bool) -> list[int]:
    """Tokens that each example becomes, exactly as the collator will make them."""
    return [length for length, _ in _token_counts(collator, examples, with_answer, MediaTokens(collator))]


def _token_counts(
    collator: Collator, examples: Sequence[Example], with_answer: bool, media_tokens: MediaTokens
) -> list[tuple[int, int]]:
    """Tokens of each example, and how many of them stand for media."""
    shapes: dict[tuple[str, ...], Shape] = {}
    counts = []
    for start in range(0, len(examples), _CHUNK):
        chunk = examples[start : start + _CHUNK]
        raw = tokenize(collator.processor, [collator.template.prompt(example).text for example in chunk])
        answers = [len(collator.answer_ids(example)) if with_answer else 0 for example in chunk]
        for example, ids, answer in zip(chunk, raw, answers, strict=True):
            key = media_key(example)
            if key not in shapes:
                shapes[key] = media_shape(example, collator.media)
            media = media_tokens(example, shapes[key])
            counts.append((len(ids) + media + answer, media))
    return counts


def fit(
    collator: Collator, examples: Sequence[Example], max_length: int, overlong: str, with_answer: bool = True
) -> Fitted:
    """Apply the overlong policy.

    Args:
        overlong: `error`; `drop`, which leaves the example out; `shorten_text`, which takes tokens from the end of the
            question; or `shrink_image`, which makes images and frames smaller. Media tokens are never cut.

    Raises:
        UserError: the policy is `error` and an example is too long, or shortening or shrinking is not enough.
    """
    media_tokens = MediaTokens(collator)
    counts = _token_counts(collator, examples, with_answer, media_tokens)
    lengths, media_lengths = [length for length, _ in counts], [media for _, media in counts]
    too_long = [index for index, length in enumerate(lengths) if length > max_length]
    if too_long and overlong == "error":
        worst = max(too_long, key=lengths.__getitem__)
        raise UserError(
            f"{len(too_long)} of {len(examples)} examples are longer than collator.max_length={max_length} tokens; "
            f"the longest, {examples[worst].id}, has {lengths[worst]}. Raise collator.max_length, or set "
            "collator.overlong to drop, shorten_text or shrink_image."
        )
    if overlong == "drop":
        dropped = set(too_long)
        kept = [index for index in range(len(examples)) if index not in dropped]
        result = Fitted(examples, kept, {})
        result.dropped = [examples[index].id for index in too_long]
        result.lengths = [lengths[index] for index in kept]
        result.media_lengths = [media_lengths[index] for index in kept]
        return result
    excess = {index: lengths[index] - max_length for index in too_long}
    if overlong == "shrink_image":
        replaced = {index: shrunk(collator, media_tokens, examples[index], n) for index, n in excess.items()}
    else:
        replaced = {index: _shortened(collator, examples[index], n) for index, n in excess.items()}
    result = Fitted(examples, range(len(examples)), replaced)
    ids = [examples[index].id for index in too_long]
    result.shortened, result.shrunk = ([], ids) if overlong == "shrink_image" else (ids, [])
    again = _token_counts(collator, list(replaced.values()), with_answer, media_tokens)
    for index, (length, media) in zip(replaced, again, strict=True):
        lengths[index], media_lengths[index] = length, media
    result.lengths, result.media_lengths = lengths, media_lengths
    return result


def _shortened(collator: Collator, example: Example, excess: int) -> Example:
    """The example without the last `excess` tokens (or a few more) of its question."""
    tokenizer = collator.processor.tokenizer
    ids = tokenizer(collator.template.plain(example.question_end), add_special_tokens=False)["input_ids"]
    for keep in range(len(ids) - excess, -1, -1):
        text = tokenizer.decode(ids[:keep], skip_special_tokens=False)
        if len(tokenizer(text, add_special_tokens=False)["input_ids"]) <= len(ids) - excess:
            return example.with_question_end(text)
    raise UserError(
        f"Example {example.id} is {excess} tokens longer than collator.max_length, and its question has only "
        f"{len(ids)}: its images alone are too large. Raise collator.max_length, or set collator.overlong=drop."
    )
