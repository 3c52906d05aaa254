"""transformers' Trainer with our sampler, shared image prefixes and learning rates by part of the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, seed_worker

from vlmexp.collator.sharing import BRANCHES, branch_inputs
from vlmexp.data.example import Example
from vlmexp.errors import UserError
from vlmexp.files import open_to_umask
from vlmexp.models.modules import DEFAULT_PATTERNS
from vlmexp.storage import StorageError, size, writing
from vlmexp.training.checkpoints import is_complete
from vlmexp.training.learning_rates import part_rates, split_groups
from vlmexp.training.room import checkpoint_bytes
from vlmexp.training.throughput import Throughput
from vlmexp.training.token_batches import TokenBatches
from vlmexp.training.workers import WorkedLoaders


class VlmTrainer(Trainer):
    """A Trainer with the order of `train_sampler`, stored order in evaluation, and shared image prefixes.

    Args:
        train_sampler: the order of the examples, or the batches of this process.
        learning_rates: part of the model -> its own learning rate; what is not in it has `args.learning_rate`.
        part_of: a parameter's name to its part.
        score_answers: of the model, to metrics that every evaluation has besides its loss.

    Attributes:
        throughput: counts what the training steps do.
    """

    def __init__(
        self,
        *args: Any,
        train_sampler: Sampler[int] | TokenBatches,
        learning_rates: Mapping[str, float] | None = None,
        part_of: Callable[[str], str] = DEFAULT_PATTERNS.part_of,
        score_answers: Callable[[nn.Module], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        self._score_answers = score_answers
        self._scores: dict[str, float] = {}
        self.throughput = Throughput()
        self._train_sampler = train_sampler
        self._learning_rates, self._part_of = dict(learning_rates or {}), part_of
        self._part_rates: dict[str, float] = {}
        super().__init__(*args, **kwargs)
        self._loaders = WorkedLoaders(self.args.seed)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self._loaders.end_workers()

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new and self._learning_rates:
            owner: Any = self.model if model is None else model
            split_groups(optimizer, owner, self._learning_rates, self._part_of)
        elif self._learning_rates and not part_rates(optimizer):
            raise UserError(
                "train.vision_learning_rate and train.projector_learning_rate need an optimizer that the training "
                "makes itself: take the optimizer out of the DeepSpeed configuration."
            )
        return optimizer

    def _get_learning_rate(self) -> float:
        # Called between the optimizer's step and the scheduler's: these are the rates of the step.
        self._part_rates = part_rates(self.optimizer)
        return super()._get_learning_rate()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self._part_rates if "learning_rate" in logs else logs, start_time)

    def collated(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The inputs of a batch, on the CPU."""
        collator: Any = self.data_collator
        batch: dict[str, torch.Tensor] = collator(examples)
        return batch

    def rehearse(self, batch: dict[str, torch.Tensor]) -> None:
        """Forward and backward pass of a batch, as a training step makes them; the gradients stay.

        Only within `train`, from `on_train_begin` on: then precision, checkpointing and wrappers are set up. Processes
        do not wait for each other here, so one may try more batches than another.
        """
        self.current_gradient_accumulation_steps = self.args.gradient_accumulation_steps
        labelled = batch["labels"].ne(-100).sum().to(self.args.device)
        with self.accelerator.no_sync(model=self.model_wrapped):
            self.training_step(self.model_wrapped, batch, labelled)

    def rehearse_evaluation(self, batch: dict[str, torch.Tensor]) -> None:
        """The loss of a batch, as the evaluation within `train` computes it; as for `rehearse`."""
        self.model_wrapped.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            self.compute_loss(self.model_wrapped, self._prepare_inputs(batch), return_outputs=True)

    def get_batch_samples(self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device) -> Any:
        return super().get_batch_samples(self.throughput.timed(epoch_iterator), num_batches, device)

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.throughput.count(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self._score_answers is not None:  # before the evaluation's own clock starts
            self._scores = self._score_answers(self.accelerator.unwrap_model(self.model))
        return super().evaluate(*args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        output = super().evaluation_loop(*args, **kwargs)
        scores = {f"eval_{name}": value for name, value in self._scores.items()}
        return output._replace(metrics={**scores, **(output.metrics or {})})

    def restore_finished(self, checkpoint: Path) -> None:
        """Take weights and state from the last checkpoint of a finished training.

        `train` would make one step more, whatever the checkpoint says.
        """
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.args.load_best_model_at_end and self.state.best_model_checkpoint is not None:
            self._load_best_model()
        else:
            self._load_from_checkpoint(str(checkpoint))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """As the Trainer does; what a full disk has cut short is removed at once, which makes room for the rest.

        Raises:
            StorageError: the checkpoint cannot be written. The complete ones of before are untouched.
        """
        owner: Any = self.model
        folder = Path(str(self.args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
        try:
            with writing(folder, needs=f"a checkpoint takes about {size(checkpoint_bytes(owner, self.args))}"):
                super()._save_checkpoint(model, trial)
                if self.args.should_save:
                    open_to_umask(folder)
        except StorageError:
            if not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise

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

    def get_train_dataloader(self) -> DataLoader[Any]:
        if not isinstance(self._train_sampler, TokenBatches):
            return self._loaders.add(super().get_train_dataloader())
        dataset: Any = self.train_dataset
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=self._train_sampler,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
        )
        # As of one process, since the batches are this process's own: nothing is left to divide.
        prepared = prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )
        return self._loaders.add(prepared)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        return self._loaders.add(super().get_eval_dataloader(eval_dataset))

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[Any]:
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
