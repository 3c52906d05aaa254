"""Single rows of a batch: the collator's own tensors, told as pictures, tokens and sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch

from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import fit
from vlmexp.collator.sharing import BRANCHES
from vlmexp.data.example import Example
from vlmexp.errors import UserError
from vlmexp.preview.media import Medium, seen_media
from vlmexp.preview.survey import NO_LIMIT
from vlmexp.preview.tokens import PADDING, Piece, pieces, token_kinds


@dataclass(frozen=True)
class Segment:
    """Consecutive tokens of a row; of a packed row the shared prefix or one question."""

    title: str
    pieces: list[Piece]


@dataclass(frozen=True)
class Question:
    """An example after the overlong policy.

    Attributes:
        length: tokens it has alone.
        fate: what the policy does to it, in words; empty if it fits.
        is_left_out: whether no training sees it.
    """

    example: Example
    length: int
    fate: str = ""
    is_left_out: bool = False


@dataclass
class Card:
    """One row of a batch; where images are shared, an image with several questions.

    Attributes:
        problem: why there is nothing to show; else empty.
        more: further questions about the same image that are not shown.
        counts: kind -> tokens of the row.
    """

    questions: list[Question]
    media: list[Medium] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    problem: str = ""
    more: int = 0

    @property
    def shown(self) -> list[Example]:
        """The examples that the row is made of: those that a training sees, or all where it sees none."""
        seen = [question.example for question in self.questions if not question.is_left_out]
        return seen or [question.example for question in self.questions]

    @property
    def length(self) -> int:
        """Tokens of the row without its padding."""
        return sum(n for kind, n in self.counts.items() if kind != PADDING)


def make_cards(
    collator: Collator, groups: Sequence[Sequence[Example]], max_length: int, overlong: str, skip_bad: bool
) -> list[Card]:
    """Collate the examples as one batch and tell what is in each of its rows.

    Args:
        groups: the examples of each row: one, or with `collator.share_images` some about the same media.
        skip_bad: show media that cannot be read as a problem instead of raising.

    Raises:
        UserError: media cannot be read, or the processor refuses them.
    """
    cards = list[Card]()
    for group in groups:
        try:
            rows = [Card(questions) for questions in _rows(collator, fitted(collator, group, max_length, overlong))]
            for card in rows:
                card.media = seen_media(collator, card.shown[0])
        except UserError as error:
            if not skip_bad:
                raise
            rows = [Card([Question(example, 0) for example in group], problem=str(error))]
        cards += rows
    good = [card for card in cards if not card.problem]
    if good:
        batch = collator([example for card in good for example in card.shown])
        for index, card in enumerate(good):
            card.segments, card.counts = _row(collator, batch, index, [example.id for example in card.shown])
    return cards


def _rows(collator: Collator, questions: Sequence[Question]) -> list[list[Question]]:
    """The questions that share a row: where the overlong policy makes images smaller, not all about an image do.

    Nor do those with other words before the image.
    """
    rows: dict[tuple[str, ...], list[Question]] = {}
    for question in questions:
        rows.setdefault(collator.sharing_key(question.example), []).append(question)
    return list(rows.values())


def fitted(collator: Collator, examples: Sequence[Example], max_length: int, overlong: str) -> list[Question]:
    """Each example as the training gets it, and what the overlong policy did."""
    lengths = fit(collator, examples, NO_LIMIT, "error").lengths.tolist()
    return [
        Question(example, length)
        if length <= max_length
        else _overlong(collator, example, length, max_length, overlong)
        for example, length in zip(examples, lengths, strict=True)
    ]


def _overlong(collator: Collator, example: Example, length: int, max_length: int, overlong: str) -> Question:
    excess = f"{length:,} tokens are more than collator.max_length={max_length:,}"
    if overlong == "error":
        return Question(example, length, f"{excess}: the training would stop (collator.overlong=error).")
    try:
        kept = fit(collator, [example], max_length, overlong)
    except UserError as error:
        return Question(example, length, f"The training would stop: {error}")
    if not len(kept):
        return Question(example, length, f"{excess}: left out (collator.overlong={overlong}).", is_left_out=True)
    fate = f"{excess}: made to fit with {kept.lengths[0]:,} (collator.overlong={overlong})."
    return Question(kept[0], int(kept.lengths[0]), fate)


def _row(
    collator: Collator, batch: dict[str, torch.Tensor], index: int, ids: Sequence[str]
) -> tuple[list[Segment], dict[str, int]]:
    """The segments of a row of a batch, and how many tokens of each kind it has."""
    tokens, present, labels = (batch[name][index].tolist() for name in ("input_ids", "attention_mask", "labels"))
    kinds = token_kinds(tokens, present, labels, collator.media_ids, collator.masking.ignore_index)
    branches = batch[BRANCHES][index].tolist() if BRANCHES in batch else [None] * len(tokens)
    segments, start = [], 0
    for branch, same in groupby(branches):
        end = start + len(list(same))
        found = pieces(collator.processor.tokenizer, tokens[start:end], kinds[start:end], collator.media_ids)
        segments.append(Segment(_segment_title(branch, ids), found))
        start = end
    return segments, {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}


def _segment_title(branch: int | None, ids: Sequence[str]) -> str:
    if branch is None:
        return ""
    return "shared prefix" if branch == 0 else ids[branch - 1] if branch > 0 else "padding"
