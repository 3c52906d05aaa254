"""Do two forms of a model say the same? Greedy answers and the logits that they were chosen by.

A position's logits depend on all positions before it, pixels included, and on every layer: where they agree on the
last position of a prompt and on those of its answer, the two forms are the same function of what matters.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from transformers import GenerationConfig

from vlmexp.models.generation import own_decoding

Batch = Mapping[str, torch.Tensor]

# How far logits may differ, as a share of their scale.
#
# Merging adds the adapter to the weights and rounds once, where the adapter adds its output at every layer and rounds
# there: equal but for rounding, whose relative step is 2^-24 in float32, 2^-11 in float16 and 2^-8 in bfloat16, and
# which grows from layer to layer. Measured: 4e-7, 8e-4 and 0.016 on a trained model of 4 layers; 6e-6, 0.014 and 0.14
# on 28 layers of random weights, which amplify it most.
MERGE_TOLERANCES = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 0.25}
# The same weights, written and read back, give the same logits; a GPU may still round some of them the other way.
STORED_TOLERANCES = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
# Between a quantised base and its original there is more than rounding: only a gross mistake shows.
QUANTIZED_TOLERANCE = 0.5


@dataclass(frozen=True)
class Answer:
    """What a model says, and by which logits.

    Attributes:
        tokens: the answer's token ids, its end included.
        logits: [tokens, vocabulary] float32; row i was seen before tokens[i] was chosen.
    """

    tokens: list[int]
    logits: torch.Tensor


@dataclass(frozen=True)
class Difference:
    """Two models' answers to the same prompts.

    Attributes:
        examples, positions: how many answers, and at how many of their tokens logits were compared.
        max_abs_difference: the largest difference of two logits.
        scale: how far the best token's logit stands above the median one, on average.
        tolerance: the largest difference that is accepted.
        equal_answers: how many answers are the same. Where the logits agree, another answer is a tie between tokens.
    """

    examples: int
    positions: int
    max_abs_difference: float
    scale: float
    tolerance: float
    equal_answers: int

    @property
    def accepted(self) -> bool:
        """Whether the logits agree; never for NaN."""
        return self.max_abs_difference <= self.tolerance

    def __str__(self) -> str:
        if math.isnan(self.tolerance):
            return "the logits are no numbers: the training has diverged (see the losses in metrics.jsonl)"
        return (
            f"logits differ by up to {self.max_abs_difference:.3g} where {self.tolerance:.3g} is rounding (they span "
            f"{self.scale:.3g}), and {self.equal_answers} of {self.examples} greedy answers are equal"
        )


@torch.inference_mode()
def greedy_answers(
    model: Any, batches: Sequence[Batch], max_new_tokens: int, pad_id: int, end_id: int | None
) -> list[Answer]:
    """The model's greedy answer to every prompt.

    Args:
        batches: prompts padded on the left, as the collator makes them.
    """
    config = GenerationConfig(
        do_sample=False, max_new_tokens=max_new_tokens, pad_token_id=pad_id, eos_token_id=end_id,
        output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    answers = []
    for batch in batches:
        inputs = {
            name: value.to(model.device, model.dtype if value.is_floating_point() else None)
            for name, value in batch.items()
        }
        with own_decoding(model):
            output = model.generate(**inputs, generation_config=config)
        logits = torch.stack([step.float().cpu() for step in output.logits], dim=1)
        for tokens, rows in zip(output.sequences[:, -logits.shape[1] :].tolist(), logits, strict=True):
            count = tokens.index(end_id) + 1 if end_id in tokens else len(tokens)
            answers.append(Answer(tokens[:count], rows[:count]))
    return answers


def compare(reference: Sequence[Answer], other: Sequence[Answer], relative_tolerance: float) -> Difference:
    """How far another model's answers to the same prompts are from those of the reference.

    Logits are compared up to the first token that differs, that token's own included: from there on the two continue
    different texts.

    Raises:
        ValueError: the two have no answers to the same number of prompts, or vocabularies of different sizes.
    """
    differences, scales = [], []
    for mine, theirs in zip(reference, other, strict=True):
        if mine.logits.shape[-1] != theirs.logits.shape[-1]:
            raise ValueError(f"{mine.logits.shape[-1]} and {theirs.logits.shape[-1]} logits a token cannot be compared")
        pairs = zip(mine.tokens, theirs.tokens, strict=False)
        shared = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(mine.tokens), len(theirs.tokens)) - 1)
        a, b = mine.logits[: shared + 1], theirs.logits[: shared + 1]
        # Infinite logits of tokens that can never be said are equal, though their difference is no number.
        differences.append(torch.where(a == b, torch.zeros(()), (a - b).abs()).amax(dim=-1))
        scales.append(a.amax(dim=-1) - a.median(dim=-1).values)
    scale = float(torch.cat(scales).mean())
    return Difference(
        examples=len(reference),
        positions=sum(map(len, differences)),
        max_abs_difference=float(torch.cat(differences).max()),
        scale=scale,
        tolerance=relative_tolerance * scale if math.isfinite(scale) else math.nan,
        equal_answers=sum(mine.tokens == theirs.tokens for mine, theirs in zip(reference, other, strict=True)),
    )


class Parity:
    """Gathers what the forms of one model answer, and says whether they are the same function.

    Args:
        trained: the answers of the form that was trained; without any, nothing is compared.
        in_memory: whether that is the trained model itself, or what was saved of it.
    """

    def __init__(self, trained: Sequence[Answer], in_memory: bool = False) -> None:
        self.in_memory = in_memory
        self.answers: dict[str, Sequence[Answer]] = {"trained": trained}
        self.differences: dict[str, Difference] = {}
        self.adapter_effect: float | None = None
        self.input_difference = 0.0

    def add(self, form: str, answers: Sequence[Answer], relative_tolerance: float, reference: str = "trained") -> None:
        """Compare the answers of a form with those of one before it, once."""
        self.answers[form] = answers
        if answers and (key := f"{form} against {reference}") not in self.differences:
            self.differences[key] = compare(self.answers[reference], answers, relative_tolerance)

    def without_adapter(self, answers: Sequence[Answer], reference: str = "trained") -> None:
        """Keep how much the adapter changes: a check whose tolerance is above it cannot tell the adapter from none."""
        if answers:
            self.adapter_effect = compare(self.answers[reference], answers, 0.0).max_abs_difference

    def add_inputs(self, trained: Sequence[Batch], stored: Sequence[Batch]) -> None:
        """Compare what two processors make of the same examples."""
        self.input_difference = input_difference(trained, stored)

    def problem(self) -> str | None:
        """What does not agree, with its numbers; None if everything does."""
        for form, difference in self.differences.items():
            if not difference.accepted:
                return f"{form}: {difference}."
        if math.isinf(self.input_difference):
            return "its processor makes other tokens of the same examples."
        return None

    def record(self) -> dict[str, Any]:
        """Everything as plain values."""
        return {
            "checked": bool(self.differences),
            "trained": "in memory" if self.in_memory else "loaded from model/",
            "adapter_effect": self.adapter_effect,
            "input_difference": self.input_difference,
            "differences": {
                form: {"accepted": difference.accepted, **asdict(difference)}
                for form, difference in self.differences.items()
            },
        }


def input_difference(reference: Sequence[Batch], other: Sequence[Batch]) -> float:
    """The largest difference of the real-valued inputs (pixels); infinite if tokens, shapes or names differ."""
    largest = 0.0
    for mine, theirs in zip(reference, other, strict=True):
        if mine.keys() != theirs.keys():
            return math.inf
        for name, value in mine.items():
            if value.shape != theirs[name].shape:
                return math.inf
            if value.is_floating_point():
                largest = max(largest, float((value - theirs[name]).abs().max()) if value.numel() else 0.0)
            elif not torch.equal(value, theirs[name]):
                return math.inf
    return largest
