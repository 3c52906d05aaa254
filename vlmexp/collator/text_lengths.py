"""How many tokens texts become, without making these: what all texts begin and end with is counted once.

A tokenizer cuts a text at its added tokens first and reads every piece by itself. So the words between the last such
token of a common beginning and the first of a common end make as many tokens whatever stands beyond these two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, ProcessorMixin

from vlmexp.collator.batch import Collator
from vlmexp.collator.encode import special_token_arguments

_KNOWN = 50_000  # texts whose length is remembered
_COMPARED = 4  # texts of a call that are counted as a whole, too
_NEAR = 400  # characters at either end in which common text is looked for


class TextLengths:
    """Counts the tokens of prompts' texts, of each distinct one once."""

    def __init__(self, processor: ProcessorMixin) -> None:
        self._processor, self._tokenizer = processor, processor.tokenizer
        self._edges = _edges(self._tokenizer)
        self._known: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text, placeholders not expanded: as many as `encode.tokenize` gives."""
        if len(self._known) > _KNOWN:
            self._known.clear()
        new = [text for text in dict.fromkeys(texts) if text not in self._known]
        if new:
            self._known.update(zip(new, self._counted(new), strict=True))
        return [self._known[text] for text in texts]

    def _counted(self, texts: list[str]) -> list[int]:
        options = special_token_arguments(self._processor, texts[0])
        begin, end = self._common(texts) if len(texts) > _COMPARED else (0, 0)
        if not begin and not end:
            return self._lengths(texts, options)
        inner = self._lengths([text[begin : len(text) - end] for text in texts], options)
        step = len(texts) // _COMPARED
        whole = self._lengths(texts[::step], options)
        beyond = {length - part for length, part in zip(whole, inner[::step], strict=True)}
        if len(beyond) > 1:  # this tokenizer is of another kind
            self._edges = []
            return self._lengths(texts, options)
        return [length + next(iter(beyond)) for length in inner]

    def _common(self, texts: list[str]) -> tuple[int, int]:
        """Characters at the beginning, and at the end, that all texts share and that stand beyond an added token."""
        head = _shared([text[:_NEAR] for text in texts])
        rest = min(_NEAR, min(map(len, texts)) - len(head))
        tail = _shared([text[len(text) - rest :][::-1] for text in texts])[::-1]
        begin = max((head.rfind(edge) for edge in self._edges), default=-1)
        ends = [place + len(edge) for edge in self._edges if (place := tail.find(edge)) >= 0]
        return max(0, begin), len(tail) - min(ends) if ends else 0

    def _lengths(self, texts: list[str], options: dict[str, Any]) -> list[int]:
        tokenizer = self._tokenizer
        if not _is_plain(tokenizer):
            return [len(ids) for ids in tokenizer(texts, **options)["input_ids"]]
        tokenizer(texts[:1], **options)  # which tells the tokenizer below it not to pad and not to cut
        found = tokenizer.backend_tokenizer.encode_batch_fast(texts, **options)
        return [len(encoding) for encoding in found]


class AnswerLengths:
    """Counts the tokens of answers with their end, of each distinct one once: most data sets have few."""

    def __init__(self, collator: Collator) -> None:
        self._collator = collator
        self._known: dict[str, int] = {}

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens of what `Collator.answer_text` gives, behind a prompt."""
        if len(self._known) > _KNOWN:
            self._known.clear()
        if new := [text for text in dict.fromkeys(texts) if text not in self._known]:
            self._known.update(zip(new, map(len, self._collator.text_ids(new)), strict=True))
        return [self._known[text] for text in texts]


def _shared(texts: list[str]) -> str:
    """What all texts begin with: no two are less alike than the first and the last in order."""
    first, last = min(texts), max(texts)
    return first[: next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _edges(tokenizer: Any) -> list[str]:
    """The added tokens at which a tokenizer cuts a text whatever stands beside them."""
    added = list(getattr(tokenizer, "added_tokens_decoder", {}).values()) if tokenizer.is_fast else []
    plain = [t.content for t in added if t.content and not (t.normalized or t.single_word)]
    return [one for one in plain if not any(one != t.content and one in t.content for t in added)]


def _is_plain(tokenizer: Any) -> bool:
    """Whether the tokens are those of the tokenizer in Rust below it, with nothing done to them."""
    kind = type(tokenizer)
    methods = ((PreTrainedTokenizerBase, "__call__"), (PreTrainedTokenizerFast, "_encode_plus"))
    return tokenizer.is_fast and all(getattr(kind, name) is getattr(base, name) for base, name in methods)
