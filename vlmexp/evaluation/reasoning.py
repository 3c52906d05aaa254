"""What a model says before its answer, between tags, is no part of the answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

REASONING_TAGS = ("think", "analysis")


def without_reasoning(text: str, tags: Sequence[str] = REASONING_TAGS) -> str:
    """The text without what stands between such tags, as the command line of lmms-eval 0.7 leaves it out.

    A prompt may have opened the tag, so what stands before the last end without a begin goes as well. Reasoning that
    never ends stays: it is all that there is.

    >>> without_reasoning("<think>a dog?</think> A cat.")
    'A cat.'
    """
    left = text
    for tag in tags:
        begin, end = re.escape(f"<{tag}>"), f"</{tag}>"
        left = re.sub(f"{begin}.*?{re.escape(end)}", "", left, flags=re.DOTALL).rpartition(end)[2]
    return text if left == text else left.strip()
