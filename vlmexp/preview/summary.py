"""What a preview says: the numbers and sentences that the page and the terminal share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vlmexp.preview.cards import Card
from vlmexp.preview.media import in_pixels
from vlmexp.preview.survey import Survey
from vlmexp.preview.tokens import MEDIA, TRAINED

WORST = 20  # rows that are listed one by one


@dataclass(frozen=True)
class Preview:
    """Everything that is shown.

    Attributes:
        title: model and data set.
        facts: what it was made of, by name.
        population: rows of the split.
        survey: of `survey.rows` among these.
        sharing: whether rows of a batch hold several questions, in a sentence.
        errors: what is wrong with each row that is left out.
        choice: which examples the cards are of, in a sentence.
    """

    title: str
    facts: Mapping[str, str]
    population: int
    survey: Survey
    cards: Sequence[Card]
    max_length: int
    overlong: str
    sharing: str
    errors: Sequence[str]
    choice: str

    @property
    def too_long(self) -> list[tuple[str, int, int]]:
        """(id, tokens, media tokens) of the counted rows above `max_length`, the longest first."""
        return self.survey.over(self.max_length)


def numbers(preview: Preview) -> dict[str, tuple[str, str]]:
    """Name -> (number, what belongs to it)."""
    lengths, media = preview.survey.lengths, preview.survey.media_lengths
    counted, over = len(lengths), len(preview.too_long)
    tokens = sum(card.length for card in preview.cards)
    trained, seen = (sum(card.counts.get(kind, 0) for card in preview.cards) for kind in (TRAINED, MEDIA))
    return {
        "examples": (f"{counted:,}", "counted, all of the split" if counted == preview.population else _of(preview)),
        "tokens each": (f"{sum(lengths) / counted:,.1f}", f"{min(lengths):,} to {max(lengths):,}"),
        "media add": (_percent(sum(media), sum(lengths)), f"{sum(media) / counted:,.1f} tokens an example"),
        "too long": (f"{over:,}", f"{_percent(over, counted)} above max_length={preview.max_length:,}"),
        "trained": (_percent(trained, tokens), f"{trained:,} of {tokens:,} tokens below, where {seen:,} are media"),
    }


def policy(preview: Preview) -> str:
    """What the overlong policy will do, in a sentence."""
    over, counted = len(preview.too_long), len(preview.survey.lengths)
    if not over:
        return f"All counted examples fit into collator.max_length={preview.max_length:,}."
    rows = f"{over:,} of {counted:,} counted examples {'is' if over == 1 else 'are'} longer than"
    does = {
        "error": "stage=train would stop with an error",
        "drop": "they are left out of the training",
        "shorten_text": "they lose the end of their question",
        "shrink_image": "their images are made smaller",
    }[preview.overlong]
    return f"{rows} collator.max_length={preview.max_length:,}; with collator.overlong={preview.overlong} {does}."


def media_sizes(survey: Survey) -> str:
    """The sizes of the files in a sentence."""
    total = sum(survey.sizes.values())
    if not total:
        return "These rows have no media."
    kind = "videos" if survey.clips == total else "images" if not survey.clips else "images and videos"
    (width, height), most = survey.sizes.most_common(1)[0]
    if len(survey.sizes) == 1:
        return f"All {total:,} distinct {kind} have {in_pixels((width, height))}."
    often = f"; most often {in_pixels((width, height))} ({_percent(most, total)})" if most > 1 else ""
    areas = sorted(survey.sizes, key=lambda size: size[0] * size[1])
    span = f"from {in_pixels(areas[0])} to {in_pixels(areas[-1])}"
    return f"{total:,} distinct {kind} in {len(survey.sizes):,} sizes, {span}{often}."


def card_title(card: Card) -> str:
    """The ids of a card's examples."""
    first = card.questions[0].example.id
    count = len(card.questions) + card.more
    return first if count == 1 else f"{count:,} questions about the media of {first}"


def packing(card: Card) -> str:
    """What sharing saves in this row, in a sentence; empty for a row with one question."""
    lengths = [question.length for question in card.questions if not question.is_left_out]
    if len(lengths) < 2 or card.problem:
        return ""
    more = f" {card.more:,} more about the same media are not shown." if card.more else ""
    return f"{card.length:,} tokens packed; as {len(lengths)} separate rows it would be {sum(lengths):,}.{more}"


def _of(preview: Preview) -> str:
    return f"counted, of {preview.population:,}"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"
