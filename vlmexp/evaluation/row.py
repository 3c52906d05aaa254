"""What a metric may know of a question beside the answer that was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vlmexp.evaluation.reasoning import REASONING_TAGS, without_reasoning

if TYPE_CHECKING:  # it needs NumPy, which the names of metrics do not
    from vlmexp.collator.boxes import View
    from vlmexp.data.boxes import Box
    from vlmexp.data.example import Example


@dataclass(frozen=True)
class Row:
    """A question with its accepted answers.

    Attributes:
        id: unique within the split.
        question: as it stands in the data; choices: as texts, without letters.
        metadata: column -> value, of `dataset.metadata` and `dataset.kept`.
        boxes: the right ones, in pixels of the picture; view: what the model saw of it, and how it speaks of that.
        shared: what several questions may be about; equal for questions about the same media.
    """

    answers: tuple[str, ...]
    id: str = ""
    question: str = ""
    choices: tuple[str, ...] = ()
    metadata: Mapping[str, Any] = field(default_factory=dict)
    shared: object = None
    boxes: tuple[Box, ...] = ()
    view: View | None = None


def row_of(example: Example, reasoning_tags: Sequence[str] = REASONING_TAGS, view: View | None = None) -> Row:
    """The row that an example was made of; its answers without reasoning, as predictions are.

    Args:
        view: how the model saw the picture of its boxes, if it has some.
    """
    return Row(
        answers=tuple(without_reasoning(answer, reasoning_tags) for answer in example.answers),
        id=example.id,
        question=example.fields.get("question", ""),
        choices=example.choices,
        metadata=example.metadata or {},
        shared=(example.images, example.videos) if example.images or example.videos else None,
        boxes=example.boxes,
        view=view,
    )
