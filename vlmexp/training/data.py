"""What a training sees: the examples of its splits, and their batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from transformers import TrainingArguments

from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import Fitted, fit
from vlmexp.config import Config, train_extras
from vlmexp.data.prepare import Prepared
from vlmexp.data.stage import load_split
from vlmexp.errors import UserError
from vlmexp.files import write_jsonl
from vlmexp.parts import note_texts, refused_share, shares_images
from vlmexp.runs import Run
from vlmexp.training.sampling import EpochSampler, Order, by_length, by_media, shuffled
from vlmexp.training.token_batches import TokenBatches, shared_rows, single_rows


@dataclass(frozen=True)
class TrainingData:
    """The examples of each split (train, and validation if there is one), and for each a key of its media."""

    splits: dict[str, Fitted]
    keys: dict[str, np.ndarray]


def training_data(config: Config, run: Run, prepared: Prepared, collator: Collator) -> TrainingData:
    """The splits after the overlong policy; decides whether the collator shares images, and records both."""
    splits, keys = {}, {}
    for split in ("train", "validation"):
        if prepared.manifest["counts"][split]:
            examples = load_split(config, prepared, split)
            splits[split] = fit(
                collator, examples, config.collator.max_length, config.collator.overlong,
                refused_share=refused_share(config),
            )  # fmt: skip
            keys[split] = splits[split].media_keys(examples.media_keys())
            if not len(splits[split]):
                raise UserError(f"No example of the {split} split is left: raise collator.max_length.")
    note_left_out(run, splits)
    for split, fitted in splits.items():
        note_texts(collator, fitted.found, split, run.note_fallback)
    collator.share_images = shares_images(config, collator, keys["train"], with_loss=True)
    describe_data(run, splits, collator.share_images)
    return TrainingData(splits, keys)


def note_left_out(run: Run, splits: Mapping[str, Fitted]) -> None:
    """Write left_out.jsonl if examples are left out, and say so where the processor does not take their media."""
    rows = [
        {"split": split, "id": example_id, "error": error}
        for split, fitted in splits.items()
        for example_id, error in [
            *((dropped, "It is longer than collator.max_length.") for dropped in fitted.dropped),
            *fitted.refused.items(),
        ]
    ]
    if rows and run.is_main:
        write_jsonl(run.path("left_out.jsonl"), rows)
    for split, fitted in splits.items():
        if fitted.refused:
            first = next(iter(fitted.refused.values()))
            run.note_fallback(f"{len(fitted.refused)} examples of {split} are left out (see left_out.jsonl): {first}")


def describe_data(run: Run, splits: dict[str, Fitted], shared: bool) -> None:
    """Record in run.json how many examples and tokens there are and what the overlong policy did.

    Raises:
        UserError: the run has trained on others.
    """
    about = {
        split: {
            "examples": len(fitted),
            "longest_tokens": int(fitted.lengths.max(initial=0)),
            "mean_tokens": round(float(fitted.lengths.sum(dtype=np.int64)) / max(len(fitted), 1), 1),
            "dropped": len(fitted.dropped),
            "shortened": len(fitted.shortened),
            "shrunk": len(fitted.shrunk),
            "refused": len(fitted.refused),
        }
        for split, fitted in splits.items()
    }
    order = "by image" if shared else "by train.train_sampling_strategy"
    begun = run.record["data"].get("splits", about)["train"]
    now = about["train"]
    if changed := [f"{name} {begun[name]} then and {n} now" for name, n in now.items() if begun.get(name, n) != n]:
        raise UserError(
            f"{run.directory} began on other examples than its data give now ({', '.join(changed)}): its steps would "
            "not be those of one training. Start a new run."
        )
    run.update(data={**run.record["data"], "splits": about, "share_images": shared, "order": order})


def train_sampler(
    config: Config,
    run: Run,
    examples: Fitted,
    keys: np.ndarray,
    collator: Collator,
    arguments: TrainingArguments,
    together: int,
) -> EpochSampler | TokenBatches:
    """The batches of a training: of so many tokens or of so many examples, and their order.

    Args:
        together: how many processes the run began with.
    """
    budget = train_extras(config).tokens_per_batch
    if budget is None:
        order = epoch_order(str(arguments.train_sampling_strategy), examples, keys, collator, arguments)
        size, drop_last = arguments.train_batch_size, bool(arguments.dataloader_drop_last)
        return EpochSampler(order, len(examples), config.seed, size, drop_last)
    lengths, media_lengths = examples.lengths, examples.media_lengths
    rows = shared_rows(lengths, media_lengths, keys, budget) if collator.share_images else single_rows(lengths)
    longer = int((rows.tokens > budget).sum())
    if longer:
        run.note_fallback(
            f"{longer} of {len(examples)} examples are longer than train.tokens_per_batch={budget}, the longest has "
            f"{rows.tokens.max()} tokens: each is a batch of its own."
        )
    return TokenBatches(rows, budget, config.seed, together)


def epoch_order(
    strategy: str, examples: Fitted, keys: np.ndarray, collator: Collator, arguments: TrainingArguments
) -> Order:
    """The order of an epoch: by image where images are shared, else as `train.train_sampling_strategy` says."""
    if collator.share_images:
        return by_media(keys)
    if strategy == "group_by_length":
        return by_length(examples.lengths, examples_per_step(arguments))
    return shuffled(len(examples))


def examples_after(sampler: EpochSampler | TokenBatches, arguments: TrainingArguments) -> Callable[[int], int]:
    """How many examples so many steps see, on all ranks together; an epoch's last may be short."""
    batches = arguments.gradient_accumulation_steps * arguments.world_size  # of a step
    if isinstance(sampler, TokenBatches):
        return lambda steps: sampler.examples_after_steps(steps, batches)

    def after(steps: int) -> int:
        epochs, rest = divmod(steps, -(-sampler.batches_per_epoch // batches))
        seen = min(rest * batches * sampler.batch_size, sampler.examples_per_epoch)
        return epochs * sampler.examples_per_epoch + seen

    return after


def examples_per_step(arguments: TrainingArguments) -> int:
    """How many examples an optimizer step sees, on all ranks together."""
    return int(arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size)
