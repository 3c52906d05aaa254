"""What is to be said about examples: marks of media in texts, texts that the model must not read, images too large."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from vlmexp.collator.boxes import cuts_off
from vlmexp.collator.prompt import PromptTemplate
from vlmexp.data.example import Example
from vlmexp.data.marks import MARK, Parts

# Bits of a number that tells what is found in an example.
PLACED, LEFT, REPEATED, SPACED, SCALED, BOXED = 1, 2, 4, 8, 16, 32


def found_in(template: PromptTemplate, example: Example) -> int:
    """The bits of what is found in an example."""
    parts = _parts(template, example)
    texts = [text for kind, text in parts if kind == "text"]
    texts += [example.fields[name] for name in template.shown_fields if name in example.fields.keys() - {"question"}]
    placed = {kind for kind, number in parts if kind != "text" and number}
    marks = {match[1] for text in texts if "<" in text for match in MARK.finditer(text)}
    pattern = template.control.pattern
    is_spaced = pattern is not None and any(map(pattern.search, [*texts, example.answer]))
    of_texts = LEFT * bool(marks - placed) | REPEATED * bool(marks & placed) | SPACED * is_spaced
    return PLACED * bool(placed) | of_texts | BOXED * bool(example.boxes)


def remarks(found: np.ndarray, template: PromptTemplate) -> Iterator[str]:
    """A sentence for each thing that is done to texts otherwise than they ask for.

    Args:
        found: [examples] what is found in each.
    """

    def share(bit: int) -> str:
        return f"{np.count_nonzero(found & bit):,} of {len(found):,} examples"

    if (found & LEFT).any():
        where = " in front of all words" if template.is_prefix else ""
        yield (
            f"In {share(LEFT)} a text holds <image> or <video>, or a numbered one, and not as many as there are media"
            f"{where}: it stays text, and the media stand where collator.messages have them."
        )
    if (found & SCALED).any():
        yield (
            f"In {share(SCALED)} an image has more pixels than collator.image_processing.max_pixels and is scaled down "
            "to so many."
        )
    if (found & BOXED).any() and cuts_off(template.processor.image_processor):
        name = type(template.processor.image_processor).__name__
        yield (
            f"In {share(BOXED)} the answer is a box, and {name} cuts the middle out of pictures that "
            "are no squares: boxes may lie in what is not seen. Set collator.image_processing.resize_mode=stretch and "
            "max_size to the model's own size."
        )
    if (found & REPEATED).any():
        yield (
            f"In {share(REPEATED)} a mark such as <image 1> comes again: the image stands at the first, and the others "
            "are text."
        )
    if (found & SPACED).any():
        texts = ", ".join(sorted(text for text in template.control.strings)[:4])
        yield (
            f"In {share(SPACED)} a text holds what the model would take for an image or for the end of a turn (such as "
            f"{texts}): it is read and learnt with a space in it."
        )


def _parts(template: PromptTemplate, example: Example) -> Parts:
    """The example's question, or all turns of its conversation, with the media that stand in it."""
    if example.turns:
        return tuple(part for turn in example.turns for part in turn.parts)
    if "question" not in template.shown_fields:
        return ()
    return template.question(example.fields, len(example.images), len(example.videos))
