"""What happens beside the training steps: stopping when told to or in time, the metrics file and the progress bar."""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from vlmexp import distributed
from vlmexp.files import json_line, read_json, read_jsonl, write_text
from vlmexp.runs import Run, now
from vlmexp.storage import size
from vlmexp.training.best import evaluations_since_best
from vlmexp.training.room import check_room
from vlmexp.training.throughput import Throughput

EVALUATION_TIMES = ("eval_runtime", "eval_samples_per_second", "eval_steps_per_second", "eval_model_preparation_time")
log = logging.getLogger(__name__)


class StopWhenTold(TrainerCallback):
    """Ends training at the first step boundary after a signal, as soon as that step's checkpoint is written.

    The ranks of a job agree on the step. It has to stand before callbacks that look at `should_save`.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self._stopping = False

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.run.update(progress={"step": state.global_step, "of": state.max_steps, "since": now()})

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if number := distributed.greatest(self.run.interruption.signal or 0):
            # Of all ranks now: the first one to end has the launcher signal the others, which are writing by then.
            self.run.interruption.signal = number
            self._stopping = control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._stopping:
            self.run.interruption.check()


class StopWithoutBetter(TrainerCallback):
    """Ends training when so many evaluations in a row were no better than the best one.

    It reads the log that a checkpoint holds, so a resumed training ends where the undisturbed one does.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        metric = f"eval_{(args.metric_for_best_model or 'loss').removeprefix('eval_')}"
        values = [line[metric] for line in state.log_history if metric in line]
        if evaluations_since_best(values, bool(args.greater_is_better)) >= self.patience:
            recent = ", ".join(f"{value:.4g}" for value in values[-self.patience :])
            log.warning(f"Training ends after step {state.global_step}: no better {metric} since ({recent}).")
            control.should_training_stop = True


def metrics_line(logs: Mapping[str, Any]) -> dict[str, Any]:
    """What metrics.jsonl keeps of a line of the Trainer's log, apart from how fast the steps were."""
    rates = [name for name in logs if name.startswith("learning_rate")]
    evaluation = [name for name in logs if name.startswith("eval_") and name not in EVALUATION_TIMES]
    names = ["loss", *rates, "grad_norm", "num_input_tokens_seen"] if "loss" in logs else evaluation
    line = {"step": logs["step"], "epoch": round(logs.get("epoch") or 0.0, 6)}
    return line | {name: logs[name] for name in names if name in logs}


def restore_metrics(run: Run, checkpoint: Path) -> None:
    """Write the lines of metrics.jsonl anew that a power loss took, from what the checkpoint's log says of them."""
    path = run.path("metrics.jsonl")
    rows, history = read_jsonl(path), read_json(checkpoint / "trainer_state.json")["log_history"]
    kinds = {(row["step"], "eval_loss" in row) for row in rows}
    logged = (metrics_line(line) for line in history if "loss" in line or "eval_loss" in line)
    lost = [line for line in logged if (line["step"], "eval_loss" in line) not in kinds]
    if lost:
        run.note_fallback(
            f"{path}: lines that were lost and are written anew from {checkpoint.name}, without speed and memory: "
            f"{len(lost)}."
        )
        rows = sorted([*rows, *lost], key=lambda row: (row["step"], "eval_loss" in row))
        write_text(path, "".join(map(json_line, rows)))


class MetricsFile(TrainerCallback):
    """Writes a line to metrics.jsonl, and to what tracks the run, for every logged step and for every evaluation.

    A checkpoint is always a logged step too: so the mean loss since the last line, which the Trainer forgets when it is
    stopped, is written before it can be lost, and a resumed run logs what an undisturbed one would have.

    Args:
        examples_after: how many examples so many steps of the training see.
    """

    def __init__(self, run: Run, examples_after: Callable[[int], int], throughput: Throughput) -> None:
        self.run = run
        self.examples_after = examples_after
        self.throughput = throughput
        self._last_step = 0

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self._restart(state)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if control.should_save:
            control.should_log = True

    def on_epoch_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        self.on_step_end(args, state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        line = metrics_line({**(logs or {}), "step": state.global_step, "epoch": state.epoch})
        if "loss" in line:
            elapsed_s, tokens_per_s, data_wait = self.throughput.read()
            examples = self.examples_after(state.global_step) - self.examples_after(self._last_step)
            rate = examples / elapsed_s
            line |= {
                "samples_per_s": round(rate, 2),
                "tokens_per_s": round(tokens_per_s, 1),
                **self._utilization(tokens_per_s, args.world_size),
                "data_wait": round(data_wait, 4),
                "memory_gib": peak_memory_gib(),
            }
        elif "eval_loss" not in line:
            return
        self._restart(state)  # an evaluation is no training time
        self.run.log_metrics(line, settled=control.should_save)  # a checkpoint is worth as much as the lines before it
        self.run.tracker.log(line)

    def _utilization(self, tokens_per_s: float, processes: int) -> dict[str, float]:
        """`mfu`, see vlmexp.training.flops; nothing where the operations were not counted."""
        about = self.run.record.get("arithmetic")
        if about is None:
            return {}
        return {"mfu": float(f"{tokens_per_s * about['flops_per_token'] / (about['peak_flops'] * processes):.4g}")}

    def _restart(self, state: TrainerState) -> None:
        self._last_step = state.global_step
        self.throughput.restart()


class RoomOnDisk(TrainerCallback):
    """Compares what the training will write with what is free, before its first step."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: torch.nn.Module | None = None,
        **_: Any,
    ) -> None:
        if not self.run.is_main or model is None:
            return
        room = check_room(self.run.path("checkpoints"), model, args, state)
        self.run.update(disk=room)
        if room["free"] is not None and room["free"] < room["needed"]:
            log.warning(
                "%s has %s free, and this training writes about %s (a checkpoint takes %s, and the merged model comes "
                "last). Make room while it runs, or lower train.save_total_limit.",
                self.run.directory, size(room["free"]), size(room["needed"]), size(room["checkpoint"]),
            )  # fmt: skip


class ProgressBar(TrainerCallback):
    """One bar over all steps, with the latest losses and another metric of the evaluations."""

    def __init__(self, metric: str = "loss") -> None:
        self._names = ("loss", "eval_loss", f"eval_{metric}")
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}

    def on_train_begin(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if state.is_world_process_zero and not args.disable_tqdm:
            self._bar = tqdm(
                total=state.max_steps, initial=state.global_step, desc="train", unit="step", mininterval=0.5
            )

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        if self._bar is not None:
            self._shown |= {name: f"{logs[name]:.4g}" for name in self._names if logs and name in logs}
            self._bar.set_postfix(self._shown, refresh=False)

    def on_train_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        if self._bar is not None:
            self._bar.close()


def peak_memory_gib() -> float:
    """Peak memory so far: of the GPU if one is used, else of the process."""
    if torch.cuda.is_available():
        return float(round(torch.cuda.max_memory_allocated() / 2**30, 3))
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
