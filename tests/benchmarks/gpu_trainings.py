"""The tests of `tests/gpu`, and trainings of models at published sizes, ours and TRL's, until the time is over."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.processes import ROOT, Unavailable, spent, table
from tests.benchmarks.shapes import Shape, write_splits
from tests.benchmarks.training import distances
from tests.benchmarks.trainings import Task, Training, peer, recorded
from vlmexp.files import read_json

COCO = Shape("as VQA v2", (5, 6), (448, 640))
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # dense bfloat16, a second
TEST_SECONDS = 150  # which the tests may take
NEEDED_S = {"qwen2vl_2b": 60, "llava15_7b": 110}  # by one side's training, with its start
WORKERS = 8  # of TRL; ours chooses its own
ABOUT = """
Random weights at the published sizes, bfloat16, LoRA r=16 on all linear layers, 5 or 6 questions on an image of 448 to
640 px, 32 questions an optimizer step in forward passes of 8; the second of two epochs is timed. TRL gets the rows in
vlmexp's order. Tokens are those that the model reads: padding is none, and a prefix that questions share counts once.
The share of the card's arithmetic (MFU) is 4 x parameters x tokens, as frozen weights have no gradient of their own.
"""


def measure(models: list[str], device: str, tiny: bool, seconds: int, wheels: Path | None) -> tuple[str, str | None]:
    """What the tests and the trainings came to, and the name of the card; None for a CPU.

    Args:
        seconds: after which nothing is begun that might not end in time.
        wheels: what TRL is installed from.
    """
    end = time.monotonic() + seconds
    is_on_gpu = device != "cpu"
    card = card_name() if is_on_gpu else None
    lines = [f"`pytest tests/gpu`: {tests(is_on_gpu)}\n"]
    rows: list[list[str]] = []
    for name in models:
        with tempfile.TemporaryDirectory(prefix="vlmexp-gpu-") as folder:
            rows += compared(name, Path(folder), is_on_gpu, tiny, end, wheels, card)
    heads = ["", "questions/s", "times TRL", "tokens/s", "MFU", "peak GiB", "loss differs by"]
    return "\n".join(lines) + ABOUT + "\n" + table(heads, rows), card


def card_name() -> str:
    """As the driver calls it.

    Raises:
        SystemExit: there is none.
    """
    import torch

    if not torch.cuda.is_available():
        sys.exit("torch sees no GPU here; --device cpu --tiny tries the same lines on a CPU.")
    return torch.cuda.get_device_name()


def tests(is_on_gpu: bool) -> str:
    """The closing line of pytest."""
    variables = os.environ | ({} if is_on_gpu else {"VLMEXP_GPU_TESTS": "cpu"}) | {"OMP_NUM_THREADS": "1"}
    # Neither xdist nor what else the project's own settings name has to be there.
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-rs", "--tb=line", "tests/gpu"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=TEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return f"not ended after {TEST_SECONDS} s"
    print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
    return (done.stdout.strip() or done.stderr.strip() or "no output").splitlines()[-1].strip("= ")


def compared(
    name: str, folder: Path, is_on_gpu: bool, tiny: bool, end: float, wheels: Path | None, card: str | None
) -> list[list[str]]:
    """A line of the table for each side of one model."""
    shape = Shape(COCO.title, COCO.questions, (112, 168)) if tiny else COCO
    questions, step, micro = (16, 8, 4) if tiny else (128, 32, 8)
    if time.monotonic() + NEEDED_S[name] > end:
        return [[name, "no time was left", "", "", "", "", ""]]
    write = [sys.executable, "-m", "tests.benchmarks.checkpoints", name, folder / "model"]
    options = ["--device", "cuda" if is_on_gpu else "cpu", *(["--shrunk"] if tiny else [])]
    print(name, spent([*write, *options], folder).output.splitlines()[-1], flush=True)
    task = Task(
        folder / "model", write_splits(shape, questions, folder), questions, micro, step, 2, name, is_on_gpu,
        threads=1 if tiny else 8,
    )  # fmt: skip
    ours, order = recorded(task, folder / "ours")
    record = read_json(folder / "ours" / "run" / "run.json")
    print(json.dumps({"fit": record.get("fit"), "memory_preflight": record.get("memory_preflight")}), flush=True)
    parameters, per_row = record["model"]["parameters"], record["data"]["splits"]["train"]["mean_tokens"]
    rate = questions / ours.last_epoch_s(task.epochs)
    if time.monotonic() + NEEDED_S[name] > end:
        theirs: Training | str = "no time was left"
    else:
        theirs = by_trl(task, folder / "trl", order, wheels)
    if isinstance(theirs, str):
        return [
            line(f"{name}, vlmexp", rate, None, ours.tokens_per_s, parameters, card, ours.peak_mib, ""),
            [f"{name}, TRL", theirs, "", "", "", "", ""],
        ]
    other = questions / theirs.last_epoch_s(task.epochs)
    differs = distances(theirs, ours)[0]
    return [
        line(f"{name}, vlmexp", rate, rate / other, ours.tokens_per_s, parameters, card, ours.peak_mib, differs),
        line(f"{name}, TRL", other, 1.0, other * per_row, parameters, card, theirs.peak_mib, ""),
    ]


def by_trl(task: Task, folder: Path, order: list[int], wheels: Path | None) -> Training | str:
    """TRL's training; with gradient checkpointing where it does not fit without."""
    workers = WORKERS if task.is_on_gpu else 0
    try:
        return peer(task, folder, "trl", order, wheels, workers=workers)
    except Unavailable as error:
        return str(error)
    except RuntimeError as error:
        if "OutOfMemory" not in str(error):
            raise
    print("TRL: out of memory, again with gradient checkpointing", flush=True)
    return peer(task, folder, "trl", order, wheels, workers=workers, checkpointing=1)


def line(
    title: str, rate: float, ratio: float | None, tokens_per_s: float, parameters: int, card: str | None,
    peak_mib: float, differs: str,
) -> list[str]:  # fmt: skip
    """A line of the table."""
    peak = next((value for name, value in PEAKS.items() if card and name in card), None)
    return [
        title, f"{rate:,.1f}", f"{ratio:.2f}" if ratio else "", f"{tokens_per_s:,.0f}",
        f"{4 * parameters * tokens_per_s / peak:.1%}" if peak else "", f"{peak_mib / 1024:.1f}", differs,
    ]  # fmt: skip
