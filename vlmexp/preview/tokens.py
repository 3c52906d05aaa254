"""A row of a batch as pieces that can be read: each token's text, and whether it is trained."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

TRAINED, MASKED, MEDIA, PADDING = "trained", "masked", "media", "padding"
PART = "\N{REPLACEMENT CHARACTER}"
_BEFORE = 3  # tokens before a token that its text may hang together with: a character has up to four bytes


@dataclass(frozen=True)
class Piece:
    """A token, or `count` equal ones in a row where they stand for media or padding."""

    id: int
    text: str
    kind: str
    count: int = 1


def token_kinds(
    ids: Sequence[int], present: Sequence[int], labels: Sequence[int], media_ids: Collection[int], ignore_index: int
) -> list[str]:
    """What each token is for the loss: trained if it has a label, whatever it is besides.

    Args:
        present: the attention mask of the row; 0 at padding.
        media_ids: ids of the tokens that stand for media.
    """
    return [
        TRAINED if label != ignore_index else PADDING if not here else MEDIA if token in media_ids else MASKED
        for token, here, label in zip(ids, present, labels, strict=True)
    ]


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to those before it; a part of a character is a replacement character."""
    texts = []
    for index, token in enumerate(ids):
        start = max(0, index - _BEFORE)
        before, together = (_decoded(tokenizer, ids[start:end]) for end in (index, index + 1))
        if not together.startswith(before):  # the token completes a character
            before = before.rstrip(PART)
        text = together.removeprefix(before).lstrip(PART)
        if not text:
            text = PART if PART in _decoded(tokenizer, [token]) else str(tokenizer.convert_ids_to_tokens(token))
        texts.append(text)
    return texts


def pieces(tokenizer: Any, ids: Sequence[int], kinds: Sequence[str], media_ids: Collection[int]) -> list[Piece]:
    """The tokens as pieces; runs of one media token, or of padding, are folded."""
    folded: list[tuple[int, str, int]] = []
    for token, kind in zip(ids, kinds, strict=True):
        if folded and folded[-1][:2] == (token, kind) and (kind == PADDING or token in media_ids):
            folded[-1] = (token, kind, folded[-1][2] + 1)
        else:
            folded.append((token, kind, 1))
    texts = token_texts(tokenizer, [token for token, _, _ in folded])
    return [Piece(token, text, kind, count) for (token, kind, count), text in zip(folded, texts, strict=True)]


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    if not ids:
        return ""
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
