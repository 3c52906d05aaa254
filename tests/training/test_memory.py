from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vlmexp.training.memory import (
    PeakMemory,
    available_bytes,
    group_bytes,
    is_out_of_memory,
    optimizer_state_bytes,
    resident_bytes,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("adamw_torch", 800 + 80),
        ("adamw_torch_fused", 800 + 80),
        ("adamw_bnb_8bit", 200 + 40),
        ("paged_adamw_32bit", 0),
        ("ademamix", 1200 + 120),
        ("lion_32bit", 400 + 40),
        ("lion_8bit", 100 + 20),
        ("adafactor", 0),
        ("sgd", 400 + 40),
    ],
)
def test_state_of_an_optimizer(optim, expected):
    assert optimizer_state_bytes(optim, [torch.zeros(10, 10), torch.zeros(20, dtype=torch.bfloat16)]) == expected


def test_the_estimate_is_what_adam_takes():
    weights = [torch.nn.Parameter(torch.zeros(30, 20)), torch.nn.Parameter(torch.zeros(7))]
    optimizer = torch.optim.AdamW(weights)
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    states = [value for state in optimizer.state.values() for name, value in state.items() if name != "step"]
    assert sum(value.nbytes for value in states) == optimizer_state_bytes("adamw_torch", weights)


def test_the_peak_is_measured_and_not_the_end():
    before = resident_bytes()
    with PeakMemory() as peak:
        for _ in range(3):
            torch.ones(64 * MIB).sum()  # 256 MiB
    assert before + 250 * MIB < peak.bytes < before + 400 * MIB


def test_what_says_that_memory_is_short():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("not enough memory"))


def test_there_is_some_memory():
    assert 0 < available_bytes() < 2**50


def test_the_limits_of_a_cluster_job(tmp_path: Path):
    (tmp_path / "self").write_text("12:cpu:/old\n0::/slurm/job_1/step_0\n")
    job, step = tmp_path / "slurm" / "job_1", tmp_path / "slurm" / "job_1" / "step_0"
    step.mkdir(parents=True)
    for folder, limit, used, cache in ((job, "8000", "5000", "1000"), (step, "max", "4000", "0")):
        (folder / "memory.max").write_text(limit + "\n")
        (folder / "memory.current").write_text(used + "\n")
        (folder / "memory.stat").write_text(f"anon 1\ninactive_file {cache}\n")
    assert group_bytes(tmp_path / "self", tmp_path) == [4000]
    assert group_bytes(tmp_path / "nothing", tmp_path) == []
