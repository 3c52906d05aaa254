"""transformers' Trainer with our sampler and with shared image prefixes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from vlmexp.collator.sharing import BRANCHES, branch_inputs


class VlmTrainer(Trainer):
    """A Trainer with the order of `train_sampler`, stored order in evaluation, and shared image prefixes."""

    def __init__(self, *args: Any, train_sampler: Sampler[int], **kwargs: Any) -> None:
        self._train_sampler = train_sampler
        super().__init__(*args, **kwargs)

    def restore_finished(self, checkpoint: Path) -> None:
        """Take weights and state from the last checkpoint of a finished training.

        `train` would make one step more, whatever the checkpoint says.
        """
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if isinstance(self.model, PeftModel):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._load_whole_model(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        if isinstance(self.model, PeftModel):
            super()._load_best_model()
        else:
            self._load_whole_model(str(self.state.best_model_checkpoint))

    def _load_whole_model(self, checkpoint: str) -> None:
        """Take all weights from a checkpoint, which holds them under the Hub's names.

        The Trainer would look for the names that they have in memory, find none, and go on with what there is.
        """
        model: Any = self.model
        saved = type(model).from_pretrained(checkpoint, dtype=model.dtype)
        model.load_state_dict(saved.state_dict(), strict=True)

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[int]:
        return self._train_sampler

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        return SequentialSampler(eval_dataset)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        # A KV cache is of no use here, and the Trainer's own switch does not reach the text model of a VLM.
        inputs = {**inputs, "use_cache": False}
        if BRANCHES in inputs:
            dtype = next(model.parameters()).dtype
            if torch.is_autocast_enabled(inputs["input_ids"].device.type):
                dtype = torch.get_autocast_dtype(inputs["input_ids"].device.type)
            inputs = branch_inputs(model, inputs, dtype)
        return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
