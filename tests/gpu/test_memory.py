"""What fits into the memory of a GPU: what the preflight says of it, what `train.fit` chooses, and QLoRA."""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import math
from collections.abc import Iterator

import pytest
import torch

from tests.gpu.conftest import ON_CPU, in_precision
from vlmexp.errors import UserError

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="a CPU's memory cannot be limited like this")


@contextlib.contextmanager
def limited(mib: int) -> Iterator[None]:
    """Let torch have so many MiB more than it holds now."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    whole = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + mib * 2**20) / whole)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def needed_mib(steps, *options: str) -> int:
    """The most that a training held."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    steps("qwen2vl", *options)
    return math.ceil((torch.cuda.max_memory_allocated() - before) / 2**20)


@needs_gpu
def test_the_preflight_refuses_what_does_not_fit_and_names_a_batch_that_does(steps, plain):
    options = [*in_precision("float32"), *plain, "train.gradient_checkpointing=false", "train.fit=none"]
    whole = needed_mib(steps, *options)
    with (
        limited(whole // 2),
        pytest.raises(UserError, match=r"train.per_device_train_batch_size=(\d+) fits") as refused,
    ):
        steps("qwen2vl", *options)
    size = int(str(refused.value).partition("train.per_device_train_batch_size=")[2].split(" ")[0])
    smaller = [f"train.per_device_train_batch_size={size}", f"train.gradient_accumulation_steps={48 // size}"]
    with limited(whole // 2):
        steps("qwen2vl", *options, *smaller)


@needs_gpu
def test_fit_finds_a_batch_within_the_limit_and_changes_no_loss(steps, plain):
    options = [*in_precision("float32"), *plain]
    free = steps("qwen2vl", *options)
    whole = needed_mib(steps, *options)
    with limited(whole // 2):
        fitted = steps("qwen2vl", *options)
    assert fitted.record["fit"] != free.record["fit"]
    assert fitted.losses == pytest.approx(free.losses, abs=1e-4)
    assert fitted.grad_norms == pytest.approx(free.grad_norms, rel=1e-3)


def test_workers_change_no_loss(steps):
    """They decode and tokenize beside the training."""
    alone = steps("qwen2vl", *in_precision("float32"))
    beside = steps("qwen2vl", *in_precision("float32"), "train.dataloader_num_workers=2")
    assert beside.losses == pytest.approx(alone.losses, abs=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_qlora_learns_on_a_base_in_four_bits(steps):
    found = steps("qwen2vl", *([] if ON_CPU else in_precision("bfloat16")), "peft=qlora", "train.learning_rate=1e-2")
    assert found.losses[-1] < found.losses[0]
    assert found.record["model"]["trainable_parameters"] < found.record["model"]["parameters"]
