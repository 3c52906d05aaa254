"""Answers from a closed set: the candidate to which the model gives the highest likelihood.

The likelihood of a candidate is that of its tokens and of an end behind the prompt: the probability that the model says
this and nothing more, by whichever of the tokens that end an answer. Prompts are read once and all candidates in the
same passes behind them; a model that allows no such masks reads every prompt with every candidate.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch

from vlmexp.collator.batch import Collator, Masking
from vlmexp.data.example import Example
from vlmexp.evaluation.batches import AHEAD, answer_in_batches, by_image, by_length, share_of
from vlmexp.evaluation.shared_prefix import Prefill, Prompts, mask_of, on_device, prefill
from vlmexp.models.ends import end_ids
from vlmexp.models.masked_attention import taking_masks

PASS_TOKENS = 512  # candidates' tokens in one pass: each costs logits over the whole vocabulary
Ranking = list[tuple[str, float]]  # candidates with their log-likelihoods in nats, the likeliest first


@dataclass(frozen=True)
class Candidate:
    """A candidate for the answer to a question: the question's place in a row (from 1 on) and the answer's tokens."""

    place: int
    tokens: list[int]


def rank_answers(
    model: Any,
    collator: Collator,
    examples: Sequence[Example],
    lengths: Sequence[int],
    batch_size: int,
    choices: Sequence[Sequence[str]],
    per_token: bool = False,
    description: str = "rank",
    share_prompts: bool = True,
    packed: bool = False,
    rank: int = 0,
    ranks: int = 1,
    skip: Collection[int] = (),
    on_batch: Callable[[Mapping[int, Ranking]], None] | None = None,
    ahead: int = AHEAD,
) -> list[Ranking]:
    """The candidates for each example's answer with their log-likelihoods, in the examples' order.

    Args:
        choices: the candidates for the answer to each example.
        per_token: rank by log-likelihood divided by the number of tokens, the end of the turn included.
        batch_size: questions in a batch or, without `share_prompts`, prompts with a candidate.
        share_prompts: read a prompt once for all candidates (and an image once for all questions about it).
        packed: with `share_prompts`, read them without padding.
        rank, ranks, skip, on_batch, ahead: as in vlmexp.evaluation.generate.generate_answers; an example that is not
            asked here gets an empty list.
    """
    plain = dataclasses.replace(collator, masking=Masking(prompt=True), share_images=False)
    ends = end_ids(model, collator.processor.tokenizer, collator.end_id)
    known: dict[str, list[int]] = {}

    def tokens_of(example: Example, choice: str) -> list[int]:
        text = collator.template.answer(example.fields, choice)
        if text not in known:
            known[text] = collator.answer_ids(dataclasses.replace(example, target=choice))
        return known[text]

    def prepare(batch: list[int]) -> tuple[Any, list[list[list[int]]]]:
        rows = [examples[index] for index in batch]
        tokens = [[tokens_of(row, c) for c in choices[i]] for i, row in zip(batch, rows, strict=True)]
        if share_prompts:
            return collator.packed_prompts(rows), tokens
        whole = [dataclasses.replace(row, target=c) for i, row in zip(batch, rows, strict=True) for c in choices[i]]
        return [plain(whole[start : start + batch_size]) for start in range(0, len(whole), batch_size)], tokens

    def answer(batch: list[int], prepared: tuple[Any, list[list[list[int]]]]) -> list[Ranking]:
        inputs, tokens = prepared
        if share_prompts:
            scores = shared_log_likelihoods(model, inputs, tokens, ends, packed)
        else:
            flat = (value for part in inputs for value in separate_log_likelihoods(model, part, ends))
            scores = [[next(flat) for _ in candidates] for candidates in tokens]
        return [
            _ranked(choices[index], values, [len(ids) if per_token else 1 for ids in candidates])
            for index, values, candidates in zip(batch, scores, tokens, strict=True)
        ]

    most = max(map(len, choices), default=1)
    alone = max(1, batch_size // most)  # questions of which all candidates are about a batch
    batches = by_image(examples, lengths, batch_size) if share_prompts else by_length(lengths, alone)
    own = share_of(batches, skip, rank, ranks)
    rankings = answer_in_batches(model, own, prepare, answer, description, on_batch, ahead)
    return [rankings.get(index, []) for index in range(len(examples))]


def _ranked(choices: Sequence[str], values: Sequence[float], divisors: Sequence[int]) -> Ranking:
    scored = [(choice, value / n) for choice, value, n in zip(choices, values, divisors, strict=True)]
    return sorted(scored, key=lambda item: -item[1])  # stable: of equals the first


@torch.inference_mode()
def shared_log_likelihoods(
    model: Any,
    prompts: Prompts,
    candidates: Sequence[Sequence[list[int]]],
    ends: Sequence[int],
    packed: bool = False,
) -> list[list[float]]:
    """Log-likelihood of each example's candidates (token ids, the last of them any of the `ends`)."""
    batch, places = prompts
    read = prefill(model, batch, packed)
    rows: list[list[Candidate]] = [[] for _ in range(len(read.branch))]
    where: list[list[tuple[int, int]]] = []
    for (row, place), options in zip(places, candidates, strict=True):
        where.append([(row, len(rows[row]) + number) for number in range(len(options))])
        rows[row] += [Candidate(place, tokens) for tokens in options]
    sums = [_first_tokens(read, number, row, ends) for number, row in enumerate(rows)]
    for start, parts in _passes(rows, PASS_TOKENS // len(rows)):
        for row, values in enumerate(_further_tokens(model, read, parts, ends)):
            for number, value in enumerate(values, start=start[row]):
                sums[row][number] += value
    return [[sums[row][number] for row, number in options] for options in where]


def _first_tokens(read: Prefill, number: int, row: Sequence[Candidate], ends: Sequence[int]) -> list[float]:
    """Log-likelihood of the first token of each candidate in a row."""
    if not row:
        return []
    logits = read.logits[number]
    places = torch.tensor([candidate.place - 1 for candidate in row], device=logits.device)
    tokens = torch.tensor([candidate.tokens[0] for candidate in row], device=logits.device)
    values: list[float] = _log_likelihoods(logits[places], tokens, ends).double().tolist()
    return values


def _log_likelihoods(logits: torch.Tensor, tokens: torch.Tensor, ends: Sequence[int]) -> torch.Tensor:
    """Log-likelihood of each token by logits [..., vocabulary]; one of `ends` stands for all of them."""
    logits = logits.float()
    single = logits.gather(-1, tokens[..., None])[..., 0]
    any_end = logits[..., list(ends)].logsumexp(-1)
    is_end = torch.isin(tokens, torch.tensor(list(ends), device=tokens.device))
    return torch.where(is_end, any_end, single) - logits.logsumexp(-1)


def _passes(rows: Sequence[Sequence[Candidate]], limit: int) -> Iterator[tuple[list[int], list[Sequence[Candidate]]]]:
    """Each row's candidates in pieces of at most `limit` tokens, or one candidate; and where each piece starts."""
    pieces: list[list[tuple[int, int]]] = []
    for row in rows:
        cuts, width = [0], 0
        for number, candidate in enumerate(row):
            if width and width + len(candidate.tokens) - 1 > limit:
                cuts.append(number)
                width = 0
            width += len(candidate.tokens) - 1
        pieces.append(list(zip(cuts, [*cuts[1:], len(row)], strict=True)))
    for bounds in zip_longest(*pieces, fillvalue=(0, 0)):
        yield [start for start, _ in bounds], [row[a:b] for row, (a, b) in zip(rows, bounds, strict=True)]


def _further_tokens(
    model: Any, read: Prefill, rows: Sequence[Sequence[Candidate]], ends: Sequence[int]
) -> list[list[float]]:
    """Log-likelihood of all tokens but the first of each candidate, in one pass that leaves the cache as it was."""
    lengths = [[len(candidate.tokens) - 1 for candidate in row] for row in rows]
    width = max(map(sum, lengths))
    if width == 0:
        return [[0.0] * len(row) for row in rows]
    # [rows, width]: token, next token, place of its question, number of its candidate (-1: padding), place in it
    table = torch.tensor([_flat(row, width) for row in rows], device=read.branch.device)
    ids, targets, places, numbers, offsets = table.unbind(-1)
    index = torch.arange(width, device=ids.device)
    prompt = read.branch[:, None, :]
    seen_prompt = (prompt == 0) | (prompt == places[..., None])
    seen_own = (numbers[:, None, :] == numbers[..., None]) & (index <= index[:, None])
    bases = (places - 1).expand(*read.positions.shape[:-1], width)
    with taking_masks(model):
        logits = model(
            input_ids=ids,
            attention_mask=mask_of(torch.cat([seen_prompt, seen_own], dim=2), model.dtype),
            position_ids=read.positions.gather(-1, bases) + 1 + offsets,
            past_key_values=read.cache,
            use_cache=True,
        ).logits
    read.cache.crop(-width)
    values = _log_likelihoods(logits, targets, ends)
    per_row = [torch.split(row, [*parts, width - sum(parts)]) for row, parts in zip(values, lengths, strict=True)]
    return [[float(part.double().sum()) for part in parts[:-1]] for parts in per_row]


def _flat(row: Sequence[Candidate], width: int) -> list[tuple[int, int, int, int, int]]:
    filled = [
        (token, following, candidate.place, number, offset)
        for number, candidate in enumerate(row)
        for offset, (token, following) in enumerate(zip(candidate.tokens, candidate.tokens[1:], strict=False))
    ]
    return [*filled, *[(0, 0, 1, -1, 0)] * (width - len(filled))]


@torch.inference_mode()
def separate_log_likelihoods(model: Any, batch: dict[str, torch.Tensor], ends: Sequence[int]) -> list[float]:
    """Log-likelihood of the labelled tokens of each row of a training batch, [rows, tokens]; see `_log_likelihoods`."""
    inputs = {name: on_device(value, model) for name, value in batch.items()}
    targets = inputs.pop("labels")[:, 1:]
    keep = (targets != Masking.ignore_index).any(0).nonzero()[:, 0]
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if "logits_to_keep" in inspect.signature(inner.forward).parameters:
        logits = model(**inputs, logits_to_keep=keep).logits
    else:
        logits = model(**inputs).logits[:, keep]
    targets = targets[:, keep]
    answer = targets != Masking.ignore_index
    values = _log_likelihoods(logits, targets.clamp(min=0), ends)
    sums: list[float] = torch.where(answer, values, 0.0).double().sum(1).tolist()
    return sums
