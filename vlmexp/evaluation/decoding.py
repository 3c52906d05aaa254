"""How answers are decoded: greedily from a fresh configuration, and with what `evaluation.generation` adds to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from vlmexp.errors import UserError, shown
from vlmexp.models.generation import complaint, own_decoding

TRIED_TOKENS = 4  # that options are tried on


def decoding(
    options: Mapping[str, Any], max_new_tokens: int, pad_id: int, end_ids: Collection[int]
) -> GenerationConfig:
    """Greedy decoding with these options added; a whole number stands for the float that an option takes."""
    defaults = GenerationConfig._get_default_generation_params()
    given = {
        name: float(value) if type(value) is int and isinstance(defaults.get(name), float) else value
        for name, value in options.items()
    }
    return GenerationConfig(max_new_tokens=max_new_tokens, pad_token_id=pad_id, eos_token_id=sorted(end_ids), **given)


def generate(model: Any, inputs: Mapping[str, Any], config: GenerationConfig, tokenizer: Any) -> torch.Tensor:
    """[rows, tokens] behind the prompts, filled up with the pad token."""
    needs = {"tokenizer": tokenizer} if config.stop_strings or config.token_healing else {}
    with own_decoding(model):
        output: torch.Tensor = model.generate(**inputs, generation_config=config, **needs)
    return output[:, inputs["input_ids"].shape[1] :]


def stops(config: GenerationConfig) -> list[str]:
    """The texts at which an answer ends."""
    given = config.stop_strings or []
    return [given] if isinstance(given, str) else list(given)


def check_generation(
    options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, batch_size: int, max_new_tokens: int | None
) -> None:
    """Try `evaluation.generation` on a model of one layer with random weights, which takes no time and reads none.

    Args:
        tokenizer: the model's, whose ids the options may name.
        batch_size: of the questions; some options take one at a time only.
        max_new_tokens: the longest answer; None: not known yet.

    Raises:
        UserError: an option has a value that it cannot have, needs another one, or cannot be used at all.
    """
    if not options:
        return
    given = "; ".join(f"evaluation.generation.{name}={shown(value)}" for name, value in options.items())
    _check_kinds(options)
    least = options.get("min_new_tokens")
    if least is not None and max_new_tokens is not None and least > max_new_tokens:
        raise UserError(
            f"evaluation.generation.min_new_tokens={least} is more than the {max_new_tokens} tokens that an answer may "
            "have: raise evaluation.max_new_tokens, or leave it out."
        )
    if options.get("temperature") == 0:
        raise UserError(
            "evaluation.generation.temperature=0: without evaluation.generation answers are greedy. Leave it out, and "
            "do_sample with it."
        )
    if reason := complaint(options):
        for needed, what in (("do_sample=true", {"do_sample": True}), ("num_beams=4", {"num_beams": 4})):
            if complaint({**options, **what}) is None:
                raise UserError(
                    f"{given}: this changes nothing without evaluation.generation.{needed}: add that, or leave it out."
                )
        raise UserError(f"{given}: {reason.rstrip('.')}.")
    _try(given, options, tokenizer, min(batch_size, 2))


def _check_kinds(options: Mapping[str, Any]) -> None:
    defaults = GenerationConfig._get_default_generation_params()
    for name, value in options.items():
        kind = type(defaults.get(name))
        may_be = {kind, type(None)} | ({str} if name == "early_stopping" else set())  # that may be "never"
        if kind in (bool, int) and type(value) not in may_be:
            wanted = "true or false" if kind is bool else "a whole number"
            raise UserError(f"evaluation.generation.{name}={value!r} must be {wanted}.")


def _try(given: str, options: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, rows: int) -> None:
    ids = torch.ones(rows, 3, dtype=torch.long)
    try:
        with torch.random.fork_rng(devices=[]), torch.inference_mode():
            config = decoding({**options, "min_new_tokens": None}, TRIED_TOKENS, pad_id=0, end_ids=[0])
            generate(_small_model(tokenizer), {"input_ids": ids, "attention_mask": ids}, config, tokenizer)
    except Exception as error:  # whatever generate() says of an option
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise UserError(f"{given}: {reason.rstrip('.')}. Without evaluation.generation answers are greedy.") from None


def _small_model(tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    sizes: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    return LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer) + 8, max_position_embeddings=64, **sizes)).eval()
