"""transformers' Trainer with our sampler, shared image prefixes and learning rates by part of the model."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.data_loader import prepare_data_loader
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainerState, set_seed
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput

from vlmexp import distributed
from vlmexp.data.example import Example
from vlmexp.errors import UserError
from vlmexp.files import open_to_umask, settle
from vlmexp.models.modules import DEFAULT_PATTERNS
from vlmexp.storage import StorageError, size, writing
from vlmexp.training.checkpoints import begin, finish, is_complete, rotate, written_by
from vlmexp.training.divergence import (
    IDS,
    Diverged,
    NamedCollator,
    StepWatch,
    all_finite,
    set_base_rates,
)
from vlmexp.training.layout import laid_out
from vlmexp.training.learning_rates import part_rates, split_groups
from vlmexp.training.loss import labelled_tokens, summed_loss
from vlmexp.training.rank_batches import DealtCollator, DealtExamples, RankBatches
from vlmexp.training.room import checkpoint_bytes
from vlmexp.training.sampling import EpochSampler, StoredBatches
from vlmexp.training.throughput import Throughput
from vlmexp.training.token_batches import TokenBatches
from vlmexp.training.workers import WorkedLoaders, begin_worker


class VlmTrainer(Trainer):
    """A Trainer with the order of `train_sampler`, stored order in evaluation, and shared image prefixes.

    A loss is a mean over labelled tokens: of all batches and ranks of an optimizer step, and of all of an evaluation. A
    step whose loss or gradient is not finite is not made, and weights that are not finite are not saved: both raise
    `Diverged`.

    Args:
        train_sampler: the batches of all processes, or an order of the examples that the Trainer itself cuts.
        learning_rates: part of the model -> its own learning rate; what is not in it has `args.learning_rate`.
        rate_factor: by which all learning rates are multiplied, also those that a checkpoint holds.
        part_of: a parameter's name to its part.
        score_answers: of the model, to metrics that every evaluation has besides its loss.
        packed: whether batches are given to the model without padding.

    Attributes:
        throughput: counts what the training steps do.
    """

    def __init__(
        self,
        *args: Any,
        train_sampler: EpochSampler | TokenBatches | Sampler[int],
        learning_rates: Mapping[str, float] | None = None,
        rate_factor: float = 1.0,
        part_of: Callable[[str], str] = DEFAULT_PATTERNS.part_of,
        score_answers: Callable[[nn.Module], dict[str, float]] | None = None,
        packed: bool = False,
        **kwargs: Any,
    ) -> None:
        self._score_answers, self.packed = score_answers, packed
        self._scores: dict[str, float] = {}
        self.throughput = Throughput()
        self._train_sampler = train_sampler
        self._learning_rates, self._part_of = dict(learning_rates or {}), part_of
        self._part_rates: dict[str, float] = {}
        self._rate_factor, self._watch = rate_factor, StepWatch()
        self._eval_loader: DataLoader[Any] | None = None
        self._operations: int | None = None  # of a number in a batch, as the Trainer counts them
        self._not_finite: list[str] = []  # the examples in batches of the last evaluation whose loss is not finite
        super().__init__(*args, **kwargs)
        self._collate: Any = self.data_collator
        self.data_collator = NamedCollator(self._collate)
        self.label_smoother = None  # the Trainer's own does not shift the labels of these models
        self.model_accepts_loss_kwargs = True  # the losses here are those of a whole step's tokens already
        owner: Any = self.model
        self._head: nn.Module | None = owner.get_output_embeddings()
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
        if is_new:
            for group in optimizer.param_groups:
                group["lr"] *= self._rate_factor
        return optimizer

    def _get_learning_rate(self) -> float:
        # Called between the optimizer's step and the scheduler's: these are the rates of the step.
        self._part_rates = part_rates(self.optimizer)
        return super()._get_learning_rate()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        super().log(logs | self._part_rates if "learning_rate" in logs else logs, start_time)

    def collated(self, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """The inputs of a batch, on the CPU."""
        batch: dict[str, torch.Tensor] = self._collate(examples)
        return batch

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """As the Trainer counts them, but for the parameters, which it would count anew for every batch."""
        owner: Any = self.model
        if (numbers := inputs[owner.main_input_name].numel() if owner.main_input_name in inputs else 0) == 0:
            return super().floating_point_ops(inputs)
        if self._operations is None:
            self._operations = super().floating_point_ops(inputs) // numbers
        return self._operations * numbers

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
        batches, tokens = super().get_batch_samples(self.throughput.timed(epoch_iterator), num_batches, device)
        self._watch.begin([batch.pop(IDS) for batch in batches])
        return batches, tokens

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Any:
        # Of every model, also of those that take no such number: a step's loss is a mean over all of its tokens.
        if not batch_samples:
            return None
        tokens = torch.stack([labelled_tokens(batch["labels"]) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            tokens = self.accelerator.gather(tokens).sum()
        return tokens

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.throughput.count(inputs)
        loss = super().training_step(model, inputs, *args, **kwargs)
        self._watch.add(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        # Called behind the last backward pass of a step, and before the optimizer's.
        norm = super()._get_grad_norm(model, grad_norm)
        bad = self._watch.check(norm, scaled=self.accelerator.scaler is not None)
        if bad is not None:
            self.state.global_step += 1
            rate = self._get_learning_rate()
            self.log({"loss": bad["loss"], "grad_norm": bad["grad_norm"], "learning_rate": rate})
            raise Diverged({"step": self.state.global_step, "learning_rate": rate, **bad})
        return norm

    def require_finite_weights(self) -> None:
        """Raise `Diverged` if there is something in the trained weights that must not be saved."""
        model: Any = self.model
        if not all_finite(parameter for parameter in model.parameters() if parameter.requires_grad):
            raise Diverged({"step": self.state.global_step})

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        if self._score_answers is not None:  # before the evaluation's own clock starts
            self._scores = self._score_answers(self.accelerator.unwrap_model(self.model))
        metrics = super().evaluate(*args, **kwargs)
        if not math.isfinite(metrics["eval_loss"]):
            record = {"eval_loss": metrics["eval_loss"], "examples": self._not_finite}
            raise Diverged({"step": self.state.global_step, **record})
        return metrics

    def _evaluate(self, trial: Any, ignore_keys_for_eval: Any, skip_scheduler: bool = False) -> dict[str, float]:
        if skip_scheduler and self.state.global_step > 0:  # train.eval_on_start of a training that goes on
            return {}
        return super()._evaluate(trial, ignore_keys_for_eval, skip_scheduler)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The mean loss of a labelled token, each example counted once, whatever the batches and ranks are."""
        model: Any = self.model
        for part in list[Any]((model, self.optimizer)):  # some optimizers have weights of their own for evaluation
            if callable(getattr(part, "eval", None)):
                part.eval()
        names, made = list[list[str]](), list[torch.Tensor]()  # of each batch; read from the device once
        for batch in dataloader:
            names.append(batch.pop(IDS))
            inputs = self._prepare_inputs(batch)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss = self.compute_loss(model, inputs)
            made.append(torch.stack([loss.double(), labelled_tokens(inputs["labels"]).double()]))
            self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        summed, tokens, bad = 0.0, 0, list[str]()
        for ids, (value, labelled) in zip(names, torch.stack(made).tolist() if made else (), strict=True):
            summed, tokens = summed + value * labelled, tokens + int(labelled)
            bad = bad if bad or math.isfinite(value) else ids
        ranks = distributed.gathered((summed, tokens, bad))
        self._not_finite = [name for _, _, ids in ranks for name in ids]
        mean = sum(part for part, _, _ in ranks) / max(1, sum(number for _, number, _ in ranks))
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in {**self._scores, "loss": mean}.items()}
        dataset: Any = self.eval_dataset
        return EvalLoopOutput(predictions=None, label_ids=None, metrics=metrics, num_samples=len(dataset))  # type: ignore[arg-type]

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
            Diverged: it would hold numbers that are not finite.
        """
        self.require_finite_weights()
        owner: Any = self.model
        output = Path(str(self.args.output_dir))
        folder, limit = output / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", self.args.save_total_limit
        try:
            with writing(folder, needs=f"a checkpoint takes about {size(checkpoint_bytes(owner, self.args))}"):
                if self.args.should_save:
                    begin(folder)
                self.args.save_total_limit = None  # what is older goes only when this one is on the disk
                super()._save_checkpoint(model, trial)
                own = folder / f"rng_state_{self.args.process_index}.pth"
                if own.exists():
                    settle(own)
                distributed.barrier()  # the files of all processes are there
                if self.args.should_save:
                    open_to_umask(folder)
                    finish(folder)
                    rotate(output, limit, self.state.best_model_checkpoint, bool(self.args.load_best_model_at_end))
        except StorageError:
            if self.args.should_save and not is_complete(folder):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            self.args.save_total_limit = limit

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        rates = list(getattr(self.lr_scheduler, "base_lrs", ()))
        super()._load_optimizer_and_scheduler(checkpoint)
        if self._rate_factor != 1:
            set_base_rates(self.optimizer, self.lr_scheduler, rates)

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
        batches, examples, collator = self._train_sampler, cast(Any, self.train_dataset), cast(Any, self.data_collator)
        if not isinstance(batches, EpochSampler | TokenBatches):
            return self._loaders.add(super().get_train_dataloader())
        if isinstance(batches, EpochSampler):
            batches.batch_size = self._train_batch_size  # which `auto_find_batch_size` lowers
        # Only where a step's loss is divided by all of its labels may a batch have none.
        dealt = DealtCollator(collator, without_loss=self.args.average_tokens_across_devices)
        own = RankBatches(batches, self.args.world_size, self.args.process_index)
        return self._loaders.add(self._ready_made(DealtExamples(examples), own, dealt))

    def _ready_made(self, dataset: Any, batches: Sampler[Any], collate: Any) -> DataLoader[Any]:
        """A loader of batches that are this process's own."""
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
            worker_init_fn=partial(
                begin_worker, workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
        )
        # As of one process: nothing is left to divide.
        prepared: DataLoader[Any] = prepare_data_loader(
            loader, self.accelerator.device, num_processes=1, process_index=0, put_on_device=True
        )
        return prepared

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        if self._eval_loader is None:
            dataset: Any = self.eval_dataset
            size, rank, ranks = self.args.eval_batch_size, self.args.process_index, self.args.world_size
            batches = StoredBatches(len(dataset), size, rank, ranks)
            self._eval_loader = self._loaders.add(self._ready_made(dataset, batches, self.data_collator))
        return self._eval_loader

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Take the random states of a checkpoint; where other processes wrote it, draw anew, on each something else."""
        if checkpoint is None or written_by(Path(checkpoint)) in (None, self.args.world_size):
            super()._load_rng_state(checkpoint)
        else:
            text = f"{self.args.seed}:{self.state.global_step}:{self.args.process_index}:{self.args.world_size}"
            set_seed(random.Random(text).getrandbits(32))

    def _get_train_sampler(self, train_dataset: Dataset[Any] | None = None) -> Sampler[Any]:
        return cast(Sampler[Any], self._train_sampler)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The sum of the batch's token losses over `num_items_in_batch`, by default its own number of labelled tokens.

        Labels are smoothed in training only: losses of evaluations stay comparable.
        """
        # A KV cache is of no use here, and the Trainer's own switch does not reach the text model of a VLM.
        inputs = {**laid_out(model, inputs, self.packed), "use_cache": False}
        smoothing = self.args.label_smoothing_factor if model.training else 0.0
        summed, outputs = summed_loss(model, self._head, inputs, smoothing)
        tokens = labelled_tokens(inputs["labels"]).clamp(min=1) if num_items_in_batch is None else num_items_in_batch
        loss = summed / tokens
        if (balance := getattr(outputs, "aux_loss", None)) is not None:  # of experts, where the model is asked for it
            owner: Any = self.model
            router_weight = owner.config.get_text_config().router_aux_loss_coef
            loss = loss + router_weight * balance * labelled_tokens(inputs["labels"]) / tokens
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # by which the gradients' mean over the ranks divides
        return (loss, outputs) if return_outputs else loss
