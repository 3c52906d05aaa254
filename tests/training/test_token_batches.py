from __future__ import annotations

import itertools

import numpy as np
import pytest

from tests.training.test_train import losses, run_training, weights
from vlmexp.errors import UserError
from vlmexp.files import read_jsonl
from vlmexp.training.heaviest import TokenCounts, training_batches
from vlmexp.training.token_batches import Rows, TokenBatches, shared_rows, single_rows

RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(20, 400, 1000)
MEDIA = np.repeat(RNG.integers(16, 200, 200), 5)
KEYS = np.repeat(np.arange(200), 5)
BUDGET = 2000


def of(rows: Rows, *, seed: int = 0, together: int = 1, budget: int = BUDGET, packed: bool = False) -> TokenBatches:
    return TokenBatches(rows, budget, seed, together, packed)


SINGLE = single_rows(LENGTHS)
SHARED = shared_rows(LENGTHS + MEDIA, MEDIA, KEYS, BUDGET)


@pytest.mark.parametrize("rows", [SINGLE, SHARED], ids=["single", "shared"])
@pytest.mark.parametrize("together", [1, 3])
@pytest.mark.parametrize("packed", [False, True])
def test_an_epoch_is_every_example_once_and_no_batch_exceeds_the_budget(rows, together, packed):
    if rows is SINGLE:
        counts = TokenCounts(LENGTHS, np.zeros(1000, int), packed=packed)
    else:
        counts = TokenCounts(LENGTHS + MEDIA, MEDIA, KEYS, packed)
    sampler = of(rows, together=together, packed=packed)
    for epoch in range(3):
        batches = list(sampler.batches(epoch))
        assert len(batches) == sampler.batches_per_epoch
        assert len(batches) % together == 0
        assert sorted(itertools.chain(*batches)) == list(range(1000))
        assert max(map(counts.tokens, batches)) <= BUDGET


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("rows", [SINGLE, SHARED], ids=["single", "shared"])
def test_an_epoch_is_a_function_of_seed_and_epoch(rows, packed):
    first = of(rows, packed=packed)
    epochs = [list(first.batches(epoch)) for epoch in range(3)]
    assert list(first.batches(0)) == epochs[0] == list(of(rows, packed=packed).batches(0))
    assert len({len(batches) for batches in epochs}) == 1
    assert epochs[0] != epochs[1]
    assert {frozenset(b) for b in epochs[0]} != {frozenset(b) for b in epochs[1]}, "batches are drawn anew"
    assert list(of(rows, seed=1, packed=packed).batches(0)) != epochs[0]


def test_little_is_padding():
    counts = TokenCounts(LENGTHS, np.zeros(1000, int))
    tokens = sum(map(counts.tokens, of(SINGLE).batches(0)))
    assert LENGTHS.sum() / tokens > 0.95
    assert LENGTHS.sum() / (of(SINGLE).batches_per_epoch * BUDGET) > 0.85


def test_packed_batches_are_full_and_of_rows_of_all_lengths():
    sampler = of(SINGLE, packed=True)
    batches = list(sampler.batches(0))
    filled = [int(LENGTHS[batch].sum()) for batch in batches]
    assert np.mean(filled) > 0.92 * BUDGET
    assert len(batches) < of(SINGLE).batches_per_epoch
    assert filled[0] > 0.95 * BUDGET, "one of the fullest comes first"
    spread = np.mean([LENGTHS[batch].std() for batch in batches])
    assert spread > 0.8 * LENGTHS.std()
    together = [set(batch) for epoch in range(4) for batch in sampler.batches(epoch)]
    company = {index for batch in together if 7 in batch for index in batch}
    assert len(company) > 2 * max(len(batch) for batch in together if 7 in batch), "in every epoch with others"


def test_packed_batches_of_a_few_examples():
    """A row that is longer than the budget is alone; the others fill two batches of 32."""
    batches = list(of(single_rows([16, 100, 8, 16, 8, 16]), budget=32, packed=True).batches(0))
    sums = sorted(sum([16, 100, 8, 16, 8, 16][index] for index in batch) for batch in batches)
    assert sums == [32, 32, 100]
    assert batches[0] == [1]


def test_batches_of_a_few_examples():
    #         0   1    2   3   4  5
    lengths = [9, 30, 100, 10, 8, 9]
    batches = list(of(single_rows(lengths), budget=32).batches(0))
    assert batches[0] == [2]  # longer than the budget, and the longest comes first
    assert sorted(map(sorted, batches)) == [[0, 3, 5], [1], [2], [4]]


def test_an_image_with_more_questions_than_the_budget_allows_has_several_rows():
    #        a: media 10, texts 5 5 5 5; b: media 4, text 30; c: without media
    rows = shared_rows([15, 15, 34, 15, 15, 7], [10, 10, 4, 10, 10, 0], ["a", "a", "b", "a", "a", "c"], budget=21)
    assert [rows.members[a:b].tolist() for a, b in itertools.pairwise(rows.starts)] == [[0, 1], [3, 4], [2], [5]]
    assert rows.tokens.tolist() == [20, 20, 34, 7]
    assert sorted(map(sorted, of(rows, budget=21).batches(0))) == [[0, 1], [2], [3, 4], [5]]


def test_processes_take_batches_of_like_length_together():
    batches = of(SINGLE, together=2)
    longest = [max(LENGTHS[index] for index in batch) for batch in batches.batches(0)]
    apart = [abs(a - b) for a, b in zip(longest[::2], longest[1::2], strict=True)]
    assert np.mean(apart) < 5


@pytest.mark.parametrize("count", [1, 3, 4, 5])
def test_too_few_rows_for_the_processes_come_once_all_the_same(count):
    batches = list(of(single_rows([90] * count), budget=100, together=4).batches(0))
    assert sorted(batches) == [[index] for index in range(count)]


def test_larger_batches_are_cut_so_that_every_process_has_as_many():
    assert sorted(map(len, of(single_rows([10] * 9), budget=50, together=4).batches(0))) == [2, 2, 2, 3]


@pytest.mark.parametrize("rows", [SINGLE, SHARED], ids=["single", "shared"])
@pytest.mark.parametrize(("together", "batches_per_step"), [(1, 1), (2, 8)])
def test_examples_are_counted(rows, together, batches_per_step):
    sampler = of(rows, together=together)
    steps = -(-sampler.batches_per_epoch // batches_per_step)
    sizes = [len(batch) for batch in training_batches(sampler, 2 * sampler.batches_per_epoch)]
    for step in (0, 1, 5, steps - 1):
        assert sampler.examples_after_steps(step, batches_per_step) == sum(sizes[: step * batches_per_step])
    assert sampler.examples_after_steps(steps, batches_per_step) == 1000
    second = sizes[len(sizes) // 2 :][:batches_per_step]
    assert sampler.examples_after_steps(steps + 1, batches_per_step) == 1000 + sum(second)


@pytest.mark.parametrize(("sharing", "workers"), [("auto", 0), ("never", 2)])
def test_a_resumed_run_is_the_undisturbed_run(small, tmp_path, cut_after, sharing, workers):
    config = small(
        f"collator.share_images={sharing}", "train.tokens_per_batch=100", "train.save_total_limit=20",
        "train.num_train_epochs=3", f"train.dataloader_num_workers={workers}", "train.save_steps=2",
        "train.gradient_accumulation_steps=3",
    )  # fmt: skip
    record = run_training(config, tmp_path / "whole")
    assert record["data"]["share_images"] == (sharing == "auto")
    steps = record["stages"]["train"]["steps"]
    cut = cut_after(tmp_path / "whole", 2)
    record = run_training(config, cut)
    assert record["stages"]["train"]["resumed_from"] == "checkpoint-2"
    assert losses(cut) == losses(tmp_path / "whole")
    assert weights(cut) == weights(tmp_path / "whole")
    assert record["stages"]["train"]["steps"] == steps


def test_the_loss_is_the_mean_over_tokens_however_they_are_cut(small, tmp_path):
    """One step over all examples: as one batch, and as several under a budget."""
    whole = small(
        "peft.lora_dropout=0", "train.max_steps=1", "train.per_device_train_batch_size=64", "train.eval_strategy=no",
        "train.gradient_accumulation_steps=1", "collator.share_images=never",
    )  # fmt: skip
    cut = small(
        "peft.lora_dropout=0", "train.max_steps=1", "train.tokens_per_batch=200", "train.eval_strategy=no",
        "train.gradient_accumulation_steps=99", "collator.share_images=never",
    )  # fmt: skip
    first = run_training(whole, tmp_path / "whole")
    second = run_training(cut, tmp_path / "cut")
    (a,), (b,) = losses(tmp_path / "whole"), losses(tmp_path / "cut")
    assert a[1] == pytest.approx(b[1], rel=1e-5)
    assert a[2] == pytest.approx(b[2], rel=1e-4)
    heaviest = second["memory_preflight"]["batches"][0]
    assert heaviest["set_by"] == "train.tokens_per_batch"
    assert np.prod(heaviest["inputs"]["input_ids"]) <= 200
    assert first["memory_preflight"]["batches"][0]["examples"] == first["data"]["splits"]["train"]["examples"]
    assert read_jsonl(tmp_path / "cut" / "metrics.jsonl")[0]["samples_per_s"] > 0


def test_examples_longer_than_the_budget_are_named(small, tmp_path):
    record = run_training(
        small("train.max_steps=1", "train.tokens_per_batch=20", "collator.share_images=never"), tmp_path / "run"
    )
    count = record["data"]["splits"]["train"]["examples"]
    (said,) = record["fallbacks"]
    assert said.startswith(f"{count} of {count} examples are longer than train.tokens_per_batch=20, the longest has ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["train.tokens_per_batch=0"], "tokens_per_batch=0 must be at least 1"),
        (["train.tokens_per_batch=many"], "tokens_per_batch"),
        (["train.tokens_per_batch=500", "train.train_sampling_strategy=random"], "group_by_length"),
        (["train.tokens_per_batch=500", "train.dataloader_drop_last=true"], "has none to drop"),
    ],
)
def test_what_cannot_be(small, options, message):
    with pytest.raises(UserError, match=message):
        small(*options)
