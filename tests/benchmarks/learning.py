"""Accuracy at equal numbers of questions: shared and packed batches, the default, beside plain ones."""

from __future__ import annotations

import shutil
import statistics
import sys
from pathlib import Path

from tests.benchmarks.processes import spent, table
from vlmexp.config import Collator
from vlmexp.files import read_json, read_jsonl

TITLE = "Learning at equal questions"
MINUTES = 30
SEEDS = (0, 1, 2)
POINTS = 8  # of a training, at which questions of the validation split are answered
BATCHES = "collator.share_images=never", "collator.packing=never"
ABOUT = """
The main job (the embedded model on easy-VQA) as it is by default, and with plain batches ({plain}), {seeds} seeds,
`threads=1`: accuracy on {answered} questions of the validation split after so many questions of the training, mean of
the seeds (least to greatest).
"""


def measure(folder: Path, rounds: int, points: int = POINTS, steps: int | None = None, answered: int = 400) -> str:
    """A table with a line a point; seeds take the place of rounds."""
    known = {f"collator.{name}" for name in Collator.__dataclass_fields__}
    plain = [option for option in BATCHES if option.split("=")[0] in known]
    seeds = SEEDS[:rounds]
    curves: dict[str, list[list[tuple[int, float]]]] = {"default": [], "plain": []}
    for seed in seeds:
        for name, options in {"default": [], "plain": plain}.items():
            print(f"  seed {seed}: {name}", flush=True)
            curves[name].append(curve(folder, seed, points, steps, answered, options))
    rows = []
    for place, (questions, _) in enumerate(curves["default"][0]):
        line = [f"{questions:,}"]
        for name in ("default", "plain"):
            line.append(accuracy([one[place][1] for one in curves[name]]))
        pairs = zip(curves["default"], curves["plain"], strict=True)
        line.append(f"{statistics.mean(a[place][1] - b[place][1] for a, b in pairs):+.1%}")
        rows.append(line)
    about = ABOUT.format(plain=" ".join(f"`{option}`" for option in plain), seeds=len(seeds), answered=answered)
    return about + "\n" + table(["questions seen", "default", "plain batches", "difference"], rows)


def curve(
    folder: Path, seed: int, points: int, steps: int | None, answered: int, options: list[str]
) -> list[tuple[int, float]]:
    """(questions seen, accuracy) of a training."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    line = [
        sys.executable, "-m", "vlmexp", "stage=train", f"seed={seed}", "threads=1", f"hydra.run.dir={run}",
        "train.metric_for_best_model=vqa_accuracy", "train.load_best_model_at_end=false",
        f"train.eval_generation_examples={answered}", f"train.eval_steps={1 / points}", "train.save_strategy=no",
        "export.parity_examples=0", *([f"train.max_steps={steps}"] if steps else []), *options,
    ]  # fmt: skip
    spent(line, folder, {"VLMEXP_DATA": str(folder / "prepared")})
    lines = [line for line in read_jsonl(run / "metrics.jsonl") if "eval_vqa_accuracy" in line]
    examples = train_examples(run)
    return [(round(line["epoch"] * examples), line["eval_vqa_accuracy"]) for line in lines]


def train_examples(run: Path) -> int:
    """How many questions an epoch has."""
    return int(read_json(run / "run.json")["data"]["splits"]["train"]["examples"])


def accuracy(values: list[float]) -> str:
    """The mean, and the least and the greatest where there are several."""
    middle = f"{statistics.mean(values):.1%}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.1%} to {max(values):.1%})"
