"""Token lengths from text and image headers alone, and what happens to examples that are too long.

No pixel is decoded for a length: how many tokens an image or a video becomes depends on its size only (see
vlmexp.collator.media_tokens).
"""

from __future__ import annotations

import zlib
from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

import numpy as np
import regex
from tqdm import tqdm

from vlmexp.collator.batch import Collator
from vlmexp.collator.boxes import UnusableBox
from vlmexp.collator.encode import tokenize
from vlmexp.collator.identity import collator_identity
from vlmexp.collator.media import Shape, is_scaled_down, media_key, media_shape
from vlmexp.collator.media_tokens import MediaTokens, RefusedMedia
from vlmexp.collator.remarks import PLACED, SCALED, found_in
from vlmexp.collator.shrink import shrunk
from vlmexp.collator.text_lengths import AnswerLengths, TextLengths
from vlmexp.data.example import Example
from vlmexp.data.examples import Examples, ExampleSequence
from vlmexp.data.stored_arrays import stored_array
from vlmexp.errors import UserError

_CHUNK = 2048  # examples tokenized at a time
_KNOWN_SHAPES = 4096  # of media; more are looked up again, as memory shall not grow with the data
WORTH_STORING = 1000  # examples from which on their counts are kept
KEEPING_ALL = {"drop": "keep"}  # policies instead of others where every example counts
REFUSED = -1  # instead of the length of an example with media that the model's processor does not take


class QuestionTooShort(UserError):
    """An example that is too long even without its question."""


class Fitted(ExampleSequence):
    """Examples that fit into `max_length` tokens, but for those that are `too_long`.

    Attributes:
        lengths: [examples] int32, tokens of each example, media (and the answer, if it counts) included.
        media_lengths: [examples] int32, how many of these stand for media.
        dropped, shortened, shrunk: ids of the examples that were left out, lost the end of their question, or got
            smaller images.
        too_long: ids of the examples that are longer all the same (`keep`).
        refused: id -> what is wrong, of examples that were left out because the processor does not take their media.
        found: [examples] int32, what is to be said about their texts, see vlmexp.collator.remarks.
        heads: [examples] int32, equal where the same words stand before media that have places in a question, else 0.
    """

    def __init__(self, examples: Sequence[Example], kept: range | np.ndarray, replaced: dict[int, Example]) -> None:
        self._examples, self._kept, self._replaced = examples, kept, replaced
        self.lengths = self.media_lengths = self.found = self.heads = np.zeros(0, np.int32)
        self.dropped: list[str] = []
        self.shortened: list[str] = []
        self.shrunk: list[str] = []
        self.too_long: list[str] = []
        self.refused: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._kept)

    def example(self, index: int) -> Example:
        original = int(self._kept[index])
        return self._replaced.get(original) or self._examples[original]

    @property
    def kept(self) -> range | np.ndarray:
        """Index of each example in the sequence that it came from, ascending."""
        return self._kept

    def media_keys(self, keys: np.ndarray) -> np.ndarray:
        """[examples] int64: a number that is equal exactly for examples that can share their media.

        These are the same media, at the same size and behind the same words.

        Args:
            keys: the same of each example of the sequence that these came from, whatever the size.
        """
        own = keys[self._kept]
        shrunk = [original for original, example in self._replaced.items() if example.media_limit is not None]
        for place, original in zip(np.searchsorted(self._kept, shrunk), shrunk, strict=True):
            own[place] = hash((int(keys[original]), self._replaced[original].media_limit))
        for place in np.flatnonzero(self.heads):
            own[place] = hash((int(own[place]), int(self.heads[place])))
        return own


def token_lengths(collator: Collator, examples: Sequence[Example], with_answer: bool) -> list[int]:
    """Tokens that each example becomes, exactly as the collator will make them.

    Raises:
        UserError: the processor refuses media of an example.
    """
    lengths: list[int] = token_counts(collator, examples, with_answer)[0].tolist()
    refused = [index for index, length in enumerate(lengths) if length == REFUSED]
    _refusals(collator, examples, refused, 0.0, with_answer)
    return lengths


def token_counts(collator: Collator, examples: Sequence[Example], with_answer: bool) -> np.ndarray:
    """[4, examples] int32: tokens of each example (or REFUSED), how many of them stand for media, and the `found` and
    `heads` of Fitted.

    Those of a prepared split are kept with it and read again as long as nothing changes that they depend on.
    """
    if not isinstance(examples, Examples) or len(examples) < WORTH_STORING:
        return _counted(collator, examples, with_answer)
    key = {"examples": examples.identity, "collator": collator_identity(collator), "with_answer": with_answer}
    name = f"{examples.identity['split']}-tokens"
    return stored_array(examples.cache, name, key, lambda: _counted(collator, examples, with_answer))


def _counted(collator: Collator, examples: Sequence[Example], with_answer: bool) -> np.ndarray:
    media_tokens, text_lengths = MediaTokens(collator), TextLengths(collator.processor)
    answer_lengths = AnswerLengths(collator)
    known = examples.image_sizes() if isinstance(examples, Examples) else {}
    shapes: dict[tuple[str, ...], Shape] = {}
    counts = np.zeros((4, len(examples)), np.int32)
    chunks = range(0, len(examples), _CHUNK)
    for start in tqdm(chunks, "count tokens", unit=f" x {_CHUNK:,}", leave=False, disable=len(chunks) < 3):
        chunk = examples[start : start + _CHUNK]
        raw = text_lengths([collator.template.prompt(example).text for example in chunk])
        answers = dict[int, str]()
        for index, (example, length) in enumerate(zip(chunk, raw, strict=True), start):
            key = media_key(example, collator.media)
            if key not in shapes:
                if len(shapes) == _KNOWN_SHAPES:
                    shapes.clear()
                shapes[key] = media_shape(example, collator.media, known)
            found = found_in(collator.template, example)
            found |= SCALED * is_scaled_down(example, shapes[key], collator.media)
            head = zlib.crc32(repr(collator.sharing_key(example)).encode()) >> 1 if found & PLACED else 0
            try:
                media = media_tokens(example, shapes[key])
                if with_answer:
                    answers[index] = collator.answer_text(example)
                else:
                    collator.view(example)
            except (RefusedMedia, UnusableBox):
                counts[:, index] = REFUSED, REFUSED, found, head
            else:
                counts[:, index] = length + media, media, found, head
        counts[0, np.array([*answers], np.int64)] += np.array(answer_lengths([*answers.values()]), np.int32)
    return counts


def _require_box(collator: Collator, example: Example, with_answer: bool) -> None:
    """Raise UnusableBox for a box that is not in its picture, or of which an answer that counts would say nothing."""
    if with_answer:
        collator.answer_text(example)
    else:
        collator.view(example)


def fit(
    collator: Collator,
    examples: Sequence[Example],
    max_length: int,
    overlong: str,
    with_answer: bool = True,
    refused_share: float = 0.0,
) -> Fitted:
    """Apply the overlong policy, and leave out what the processor refuses.

    Args:
        overlong: `error`; `drop`, which leaves the example out; `shorten_text`, which takes tokens from the end of the
            question; `keep`, which does so where that is enough and leaves the others as they are; or `shrink_image`,
            which makes images and frames smaller. Media tokens are never cut.
        refused_share: the largest share of the examples that may be left out because the processor does not take media
            of their size.

    Raises:
        UserError: the policy is `error` and an example is too long, shortening or shrinking is not enough, or the
            processor refuses more.
    """
    lengths, media_lengths, found, heads = token_counts(collator, examples, with_answer)
    kept: range | np.ndarray = range(len(examples))
    refused = _refusals(collator, examples, np.flatnonzero(lengths == REFUSED).tolist(), refused_share, with_answer)
    too_long = np.flatnonzero(lengths > max_length).tolist()
    if too_long and overlong == "error":
        worst = max(too_long, key=lengths.__getitem__)
        raise UserError(
            f"{len(too_long)} of {len(examples)} examples are longer than collator.max_length={max_length} tokens; "
            f"the longest, {examples[worst].id}, has {lengths[worst]}. Raise collator.max_length, or set "
            "collator.overlong to drop, shorten_text or shrink_image."
        )
    replaced: dict[int, Example] = {}
    whole: list[str] = []
    if too_long and overlong != "drop":
        media_tokens = MediaTokens(collator)
        for index in too_long:
            example, excess = examples[index], int(lengths[index]) - max_length
            try:
                replaced[index] = (
                    shrunk(collator, media_tokens, example, excess)
                    if overlong == "shrink_image"
                    else _shortened(collator, media_tokens, example, excess)
                )
            except QuestionTooShort:
                if overlong != "keep":
                    raise
                whole.append(example.id)
        changed = list(replaced)
        lengths, media_lengths = lengths.copy(), media_lengths.copy()
        lengths[changed], media_lengths[changed], *_ = _counted(collator, list(replaced.values()), with_answer)
    if refused or (too_long and overlong == "drop"):
        is_kept = lengths <= max_length if overlong == "drop" else np.ones(len(lengths), bool)
        kept = np.flatnonzero(is_kept & (lengths != REFUSED)).astype(np.int32)
        lengths, media_lengths, found, heads = lengths[kept], media_lengths[kept], found[kept], heads[kept]
    result = Fitted(examples, kept, replaced)
    result.lengths, result.media_lengths, result.refused, result.too_long = lengths, media_lengths, refused, whole
    result.found, result.heads = found, heads
    fate = {"drop": result.dropped, "shrink_image": result.shrunk}.get(overlong, result.shortened)
    fate += [examples[index].id for index in (too_long if overlong == "drop" else replaced)]
    return result


def _refusals(
    collator: Collator, examples: Sequence[Example], indices: list[int], share: float, with_answer: bool
) -> dict[str, str]:
    """Id -> what the processor has against the media, or what is wrong with the box, of these examples."""
    media_tokens, found = MediaTokens(collator), dict[str, str]()
    too_many = len(indices) > share * len(examples)
    for index in indices[:1] if too_many else indices:
        example = examples[index]
        try:
            media_tokens(example, media_shape(example, collator.media))
            _require_box(collator, example, with_answer)
        except (RefusedMedia, UnusableBox) as error:
            found[example.id] = str(error)
    if too_many:
        of_shape = not (example.videos or example.boxes)
        stretch = ", or set collator.image_processing.resize_mode=stretch and max_size" * of_shape
        limit = f", more than dataset.max_bad_share={share}" if share else ""
        instead = "Raise that" if share else "Leave such rows out with dataset.on_bad_sample=skip"
        raise UserError(
            f"{found[examples[indices[0]].id]} So it is with {len(indices)} of {len(examples)} examples{limit}. "
            f"{instead}{stretch}."
        )
    return found


def _shortened(collator: Collator, media_tokens: MediaTokens, example: Example, excess: int) -> Example:
    """The example with as much of its question's beginning as can be for `excess` tokens less.

    It is cut between characters as people see them (grapheme clusters), never within one. More of a question is more
    tokens, but for one or two where words melt: what so many tokens say is tried first, then the rest by halves.
    """
    shape = media_shape(example, collator.media)

    def tokens(candidate: Example) -> int:
        text = collator.template.prompt(candidate).text
        return len(tokenize(collator.processor, [text])[0]) + media_tokens(candidate, shape)

    most, question = tokens(example) - excess, example.question_end
    ends = [0, *(match.end() for match in regex.finditer(r"\X", question))]
    count, kept = _token_ends(collator.processor.tokenizer, collator.template.plain(question), excess)
    likely = bisect_right(ends, kept) - 1
    shorter, fits, too_many, tries = example, -1, len(ends) - 1, [likely - 1, likely + 1, likely]
    while too_many - fits > 1:
        middle = tries.pop() if tries else (fits + too_many) // 2
        if not fits < middle < too_many:
            continue
        candidate = example.with_question_end(question[: ends[middle]])
        if tokens(candidate) <= most:
            shorter, fits = candidate, middle
        else:
            too_many = middle
    if fits >= 0:
        return shorter
    raise QuestionTooShort(
        f"Example {example.id} is {excess} tokens longer than collator.max_length, and its question has only "
        f"{count}: the rest of the prompt (its media add {media_tokens(example, shape)}) and an answer to train on "
        f"(here {len(collator.answer_ids(example))}) are never cut. Raise collator.max_length, or set "
        "collator.overlong=drop."
    )


def _token_ends(tokenizer: Any, text: str, excess: int) -> tuple[int, int]:
    """How many tokens a text is, and about how many characters are left of it without the last `excess` of them."""
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=tokenizer.is_fast)
    count = len(encoded["input_ids"])
    if count <= excess:
        return count, 0
    kept = count - excess
    return count, encoded["offset_mapping"][kept - 1][1] if tokenizer.is_fast else len(text) * kept // count
