"""A batch's row as text that shows which tokens are trained."""

from __future__ import annotations

from itertools import groupby
from typing import Any


def marked(processor: Any, batch: dict[str, Any], row: int = 0) -> str:
    """The row's tokens as text, each trained one in brackets, a run of one special token as `<token>*number`.

    The tokenizer must be byte-level, with ASCII text only.
    """
    tokenizer = processor.tokenizer
    special = set(tokenizer.get_added_vocab())
    tokens = tokenizer.convert_ids_to_tokens(batch["input_ids"][row].tolist())
    trained = [label != -100 for label in batch["labels"][row].tolist()]
    pieces = []
    for (token, is_trained), group in groupby(zip(tokens, trained, strict=True)):
        count = len(list(group))
        text = token if token in special else token.replace("Ġ", " ").replace("Ċ", "\n")
        shown = f"[{text}]" if is_trained else text
        pieces.append(f"{shown}*{count}" if count > 1 and token in special else shown * count)
    return "".join(pieces)
