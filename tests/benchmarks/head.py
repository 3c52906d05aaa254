"""Memory of the loss at a large vocabulary: logits of all tokens, or of those that carry a label.

    python -m tests.benchmarks.head plain|vlmexp TOKENS LABELLED VOCABULARY

prints the loss and the MiB above what the process held before it.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.benchmarks.processes import spent, table

TITLE = "Head and loss"
MINUTES = 1
WIDTH = 1536  # as in Qwen2-VL-2B
WAYS = ("plain", "vlmexp")


def measure(folder: Path, rounds: int, tokens: int = 1600, labelled: int = 24, vocabulary: int = 151_936) -> str:
    """The same loss in two processes."""
    found = {}
    for way in WAYS:
        command = [sys.executable, "-m", "tests.benchmarks.head", way, str(tokens), str(labelled), str(vocabulary)]
        found[way] = json.loads(spent(command, folder / way).output.splitlines()[-1])
    first = found["plain"]
    rows = [
        [
            {"plain": "transformers' loss over all logits", "vlmexp": "vlmexp"}[way],
            f"{one['mib']:,.0f} MiB", f"{one['mib'] / first['mib']:.1%}", f"{one['loss']:.6f}",
        ]
        for way, one in found.items()
    ]  # fmt: skip
    about = (
        f"Forward and backward pass of a head of {vocabulary:,} words x {WIDTH:,} over {tokens:,} tokens of which "
        f"{labelled} are labelled, float32, each in a process of its own: memory above what it held before.\n"
    )
    return f"{about}\n{table(['', 'peak memory', 'of the first', 'loss'], rows)}"


def loss_of(way: str, tokens: int, labelled: int, vocabulary: int) -> dict[str, float]:
    """The loss, and the MiB that it and its gradient took."""
    import torch
    from torch import nn
    from transformers.loss.loss_utils import ForCausalLMLoss

    from vlmexp.training.loss import summed_loss

    class Model(nn.Module):
        """Hidden states that some layers have left, and a head."""

        def __init__(self) -> None:
            super().__init__()
            self.hidden = nn.Parameter(torch.randn(1, tokens, WIDTH))
            self.head = nn.Linear(WIDTH, vocabulary, bias=False).requires_grad_(False)

        def forward(self, **_: Any) -> Any:
            return SimpleNamespace(logits=self.head(self.hidden))

    torch.manual_seed(0)
    torch.set_num_threads(1)
    model, labels = Model(), torch.full((1, tokens), -100)
    labels[0, -labelled:] = torch.randint(vocabulary, (labelled,))
    before = resident_mib()
    if way == "plain":
        loss = ForCausalLMLoss(model().logits, labels, vocabulary)
    else:
        loss = summed_loss(model, model.head, {"input_ids": labels, "labels": labels})[0] / labelled
    loss.backward()
    return {"loss": float(loss.detach()), "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before}


def resident_mib() -> float:
    """The memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    print(json.dumps(loss_of(sys.argv[1], *map(int, sys.argv[2:]))))
