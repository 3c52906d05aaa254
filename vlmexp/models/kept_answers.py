"""What a trained model answers, kept in a file: later forms of it can be compared with the model itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from vlmexp.files import replace, settle
from vlmexp.models.checkpoint import check_safetensors
from vlmexp.models.parity import Answer, Batch


@dataclass(frozen=True)
class KeptAnswers:
    """Answers to prompts, of which the token ids are kept, and the precision of the model that gave them."""

    prompts: list[torch.Tensor]  # [batch, tokens] each
    answers: list[Answer]
    dtype: torch.dtype

    def are_to(self, batches: Sequence[Batch]) -> bool:
        """Whether they were given to these very prompts."""
        mine = [batch["input_ids"] for batch in batches]
        return len(mine) == len(self.prompts) and all(map(torch.equal, mine, self.prompts))

    def write(self, path: Path) -> None:
        tensors = {f"prompts.{index}": prompts for index, prompts in enumerate(self.prompts)}
        for index, answer in enumerate(self.answers):
            tensors |= {f"tokens.{index}": torch.tensor(answer.tokens), f"logits.{index}": answer.logits}
        about = {"dtype": str(self.dtype).removeprefix("torch.")}
        temporary = path.with_suffix(".partial")
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, about)
        settle(temporary)
        replace(temporary, path)


def read_answers(path: Path) -> KeptAnswers:
    """What `KeptAnswers.write` wrote; a UserError if it is no longer whole."""
    check_safetensors(path)
    with safe_open(path, "pt") as file:
        dtype = getattr(torch, file.metadata()["dtype"])
    tensors = load_file(path)

    def numbered(name: str) -> list[torch.Tensor]:
        return [tensors[f"{name}.{index}"] for index in range(sum(key.startswith(f"{name}.") for key in tensors))]

    pairs = zip(numbered("tokens"), numbered("logits"), strict=True)
    return KeptAnswers(numbered("prompts"), [Answer(tokens.tolist(), logits) for tokens, logits in pairs], dtype)
