"""How much of the device's arithmetic a training uses: model FLOPs utilization (MFU).

Chowdhery et al., PaLM, https://arxiv.org/abs/2204.02311, appendix B: the floating-point operations that model and loss
need, without those that checkpointing repeats, over those that the device could have made in the same time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmexp.collator.lengths import Fitted
from vlmexp.training.preflight import undisturbed
from vlmexp.training.trainer import VlmTrainer

# Part of a device's name -> dense bfloat16 (of V100 and T4 float16) operations a second, from the makers' data sheets.
# A more particular name stands before the one that it contains.
PEAKS = {
    "B200": 2250e12, "H200": 989e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H800": 989e12,
    "GH200": 989e12, "A100": 312e12, "A800": 312e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12, "A40": 150e12,
    "A30": 165e12, "A10": 125e12, "A6000": 155e12, "RTX 4090": 165e12, "RTX 3090": 71e12, "V100": 125e12, "T4": 65e12,
}  # fmt: skip
_SIDE, _TRIES = 1024, 4  # of the matrices whose product is timed where no data sheet is known


class ArithmeticUse(TrainerCallback):
    """Counts what a token costs, before the first step, on the example of median length or all about its image.

    Args:
        keys: equal for examples that share a row; None: none do.
        record: takes `arithmetic={flops_per_token, peak_flops, peak_from}`, the last two of one process.
    """

    def __init__(
        self, trainer: VlmTrainer, examples: Fitted, keys: np.ndarray | None, record: Callable[..., None]
    ) -> None:
        self._trainer, self._examples, self._keys, self._record = trainer, examples, keys, record

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if args.torch_compile:  # what is compiled is not seen by the counter
            return
        middle = int(np.argsort(self._examples.lengths, kind="stable")[len(self._examples) // 2])
        chosen = [middle]
        if self._keys is not None:
            chosen = np.flatnonzero(self._keys == self._keys[middle])[: args.train_batch_size].tolist()
        with undisturbed(self._trainer.model_wrapped):
            batch = self._trainer.collated([self._examples[index] for index in chosen])
            tokens = int(batch["attention_mask"].sum())
            flops = counted(lambda: self._trainer.rehearse(dict(batch)))
            if args.activation_checkpointing:  # which repeats nearly all of a forward pass
                flops -= counted(lambda: self._trainer.rehearse_evaluation(dict(batch)))
            self._trainer.model_wrapped.train()
        self._trainer.model_wrapped.zero_grad()
        model: Any = self._trainer.model
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else model.dtype
        peak, known = peak_flops(args.device, dtype)
        self._record(
            arithmetic={
                "flops_per_token": round(flops / max(1, tokens)),
                "peak_flops": peak,
                "peak_from": "data sheet" if known else "a matrix product timed here",
            }
        )


def counted(run: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention that torch makes."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def peak_flops(device: torch.device, dtype: torch.dtype) -> tuple[float, bool]:
    """Operations a second that a device can make, and whether its data sheet says so, or else a product of matrices."""
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        name = torch.cuda.get_device_name(device)
        found = next((peak for part, peak in PEAKS.items() if part in name), None)
        if found is not None:
            return found, True
    matrix, best = torch.ones(_SIDE, _SIDE, device=device, dtype=dtype), float("inf")
    for _ in range(_TRIES):
        started = time.perf_counter()
        float((matrix @ matrix)[0, 0])  # which waits for the device
        best = min(best, time.perf_counter() - started)
    return 2 * _SIDE**3 / best, False
