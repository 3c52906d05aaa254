"""What a training sees: the examples of its splits, and their batches."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import TrainingArguments

from vlmexp import distributed
from vlmexp.collator.batch import Collator
from vlmexp.collator.lengths import Fitted, fit
from vlmexp.config import Config, train_extras
from vlmexp.data.prepare import Prepared
from vlmexp.data.stage import load_split
from vlmexp.errors import UserError
from vlmexp.files import write_jsonl
from vlmexp.models.masked_attention import refuses_window
from vlmexp.parts import note_texts, packs, refused_share, shares_images
from vlmexp.runs import Run
from vlmexp.training.layout import PLAIN, Layout, layout_test, tried_on
from vlmexp.training.preflight import undisturbed
from vlmexp.training.sampling import EpochSampler, Order, by_length, by_media, shuffled
from vlmexp.training.token_batches import TokenBatches, shared_rows, single_rows

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingData:
    """The examples of each split (train, and validation if there is one), and for each a key of its media."""

    splits: dict[str, Fitted]
    keys: dict[str, np.ndarray]


def training_data(config: Config, run: Run, prepared: Prepared, collator: Collator) -> TrainingData:
    """The splits after the overlong policy, which are recorded."""
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
    describe_data(run, splits)
    data = TrainingData(splits, keys)
    _candidates(config, collator, data)  # refuses what is not possible before weights are read
    return data


def decide_layout(
    config: Config, run: Run, model: Any, collator: Collator, data: TrainingData, arguments: TrainingArguments
) -> Layout:
    """How batches are laid out: without padding and with shared images where a test shows that both are exact.

    A training keeps what its first attempt decided. The decision and its reasons are recorded and told.

    Raises:
        UserError: collator.share_images=always is not possible.
    """
    recorded = distributed.gathered(run.record["data"])[0]  # all processes do as the first one
    if "share_images" in recorded:
        return Layout(recorded["share_images"], recorded.get("packed", False))
    candidates = _candidates(config, collator, data)
    refused = dict[str, str]()
    train = data.splits["train"]
    chosen = tried_on(train.lengths, train.media_lengths, data.keys["train"])
    longest = max(int(fitted.lengths.max(initial=0)) for fitted in data.splits.values())
    with undisturbed(model):
        test = layout_test(model, collator, [train[index] for index in chosen], arguments)
        for layout in candidates:
            has_mask = layout.shared and not layout.packed  # which knows no sliding window
            is_known = layout == PLAIN or (has_mask and str(config.model.shared_image_prefix).lower() == "true")
            reasons = [] if is_known else distributed.gathered(test.refuses(layout))
            reasons += [refuses_window(model, longest)] if has_mask else []
            if (why := next(filter(None, reasons), None)) is None:
                break
            refused[layout.described] = why
        else:
            raise UserError(f"collator.share_images=always is not possible here: {why}.")
    order = "by image" if layout.shared else "random" if layout.packed else "by train.train_sampling_strategy"
    decided = {"share_images": layout.shared, "packed": layout.packed, "order": order}
    run.update(data={**recorded, **decided, **({"layouts_refused": refused} if refused else {})})
    reasons = [f"not {name}: {why}" for name, why in refused.items()]
    log.info("Batches: %s%s.", layout.described, "".join(f"; {reason}" for reason in reasons))
    return layout


def _candidates(config: Config, collator: Collator, data: TrainingData) -> list[Layout]:
    """What is wanted, the best first."""
    shared = shares_images(config, collator, data.keys["train"], with_loss=True)
    sharing = [True] if config.collator.share_images == "always" else [True, False] if shared else [False]
    return [Layout(share, pack) for share in sharing for pack in ([True, False] if packs(config) else [False])]


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


def describe_data(run: Run, splits: dict[str, Fitted]) -> None:
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
    begun = run.record["data"].get("splits", about)["train"]
    now = about["train"]
    if changed := [f"{name} {begun[name]} then and {n} now" for name, n in now.items() if begun.get(name, n) != n]:
        raise UserError(
            f"{run.directory} began on other examples than its data give now ({', '.join(changed)}): its steps would "
            "not be those of one training. Start a new run."
        )
    run.update(data={**run.record["data"], "splits": about})


def train_sampler(
    config: Config,
    run: Run,
    examples: Fitted,
    keys: np.ndarray,
    collator: Collator,
    arguments: TrainingArguments,
    together: int,
    packed: bool = False,
) -> EpochSampler | TokenBatches:
    """The batches of a training: of so many tokens or of so many examples, and their order.

    Args:
        packed: whether they have no padding.
        together: how many processes the run began with.
    """
    budget = train_extras(config).tokens_per_batch
    if budget is None:
        # Where there is no padding, examples of like length need not stand together.
        strategy = "random" if packed else str(arguments.train_sampling_strategy)
        order = epoch_order(strategy, examples, keys, collator, arguments)
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
    return TokenBatches(rows, budget, config.seed, together, packed)


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
