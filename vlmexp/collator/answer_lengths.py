"""How many tokens the accepted answers take, which says how long a model has to be let speak."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from vlmexp.collator.batch import Collator
from vlmexp.collator.boxes import UnusableBox
from vlmexp.collator.identity import collator_identity
from vlmexp.collator.lengths import WORTH_STORING
from vlmexp.data.example import Example
from vlmexp.data.examples import Examples
from vlmexp.data.stored_arrays import stored_array

_CHUNK = 2048  # examples read at a time
_KNOWN = 100_000  # texts whose tokens are remembered


def answer_lengths(collator: Collator, examples: Sequence[Example]) -> np.ndarray:
    """[examples] int32: tokens of the longest accepted answer of each, its end included; 0 where there is none.

    Those of a large prepared split are kept with it.
    """
    if not isinstance(examples, Examples) or len(examples) < WORTH_STORING:
        return _counted(collator, examples)
    key = {"examples": examples.identity, "collator": collator_identity(collator)}
    name = f"{examples.identity['split']}-answer-tokens"
    return stored_array(examples.cache, name, key, lambda: _counted(collator, examples))


def _counted(collator: Collator, examples: Sequence[Example]) -> np.ndarray:
    known: dict[str, int] = {}

    def tokens(example: Example, answer: str) -> int:
        example = dataclasses.replace(example, target=answer)
        try:
            text = collator.answer_text(example)
        except UnusableBox:  # nothing of it is seen
            return 0
        if text not in known:
            if len(known) >= _KNOWN:
                known.clear()
            known[text] = len(collator.answer_ids(example))
        return known[text]

    lengths = [
        max((tokens(example, answer) for answer in dict.fromkeys(example.answers)), default=0)
        for start in range(0, len(examples), _CHUNK)
        for example in examples[start : start + _CHUNK]
    ]
    return np.array(lengths, np.int32)
