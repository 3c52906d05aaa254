"""The tokens at which an answer ends."""

from __future__ import annotations

from typing import Any


def end_ids(model: Any, tokenizer: Any, end_of_turn: int | None) -> list[int]:
    """Ids of all tokens that end an answer, ascending: of the turn, the tokenizer's EOS, and those of the checkpoint.

    A training teaches the end of the turn alone; a model may know others from before, at which the inference code that
    is documented for it stops. The checkpoint's are those of its generation_config.json or, where that names none, of
    its config.json.

    Args:
        model: with its generation config as it was loaded.
        end_of_turn: what the chat template writes behind an answer.
    """
    text_config = model.config.get_text_config()
    configs = (model.generation_config, model.config, text_config)
    named = (_ids(getattr(config, "eos_token_id", None)) for config in configs)
    own = next((ids for ids in named if ids), [])
    ends = {*own, *_ids(tokenizer.eos_token_id), *_ids(end_of_turn)}
    return sorted(token for token in ends if token < text_config.vocab_size)  # others it cannot say


def _ids(value: Any) -> list[int]:
    """One id, several or none as a list."""
    if value is None:
        return []
    return [int(token) for token in value] if isinstance(value, list | tuple) else [int(value)]
