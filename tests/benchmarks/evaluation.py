"""Questions a second of an evaluation through the command line, beside one question after the other."""

from __future__ import annotations

import json
import shutil
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.processes import Unavailable, in_turns, spent, spread, table
from tests.benchmarks.shapes import EASY_VQA, VQA_V2, write_splits
from tests.benchmarks.training import checkpoint
from vlmexp.files import read_jsonl

TITLE = "Evaluation"
MINUTES = 8
NEW_TOKENS = 8
FEW = 8  # questions of the run whose seconds are taken off
ABOUT = f"""
`python -m vlmexp stage=eval_base` with its defaults, {NEW_TOKENS} new tokens, one thread, and `generate()` for one
question after the other. Of the command line's seconds those of a run with {FEW} questions are taken off: imports,
loading, scoring.
"""


@dataclass(frozen=True)
class Answered:
    """Answers, and seconds for `count` of them."""

    seconds: float
    count: int
    answers: list[str]

    @property
    def rate(self) -> float:
        return self.count / self.seconds


def measure(folder: Path, rounds: int, questions: int = 192) -> str:
    """A table of two data sets."""
    model, rows = checkpoint(folder), list[list[str]]()
    for name, shape in {"as easy-VQA": EASY_VQA, "as VQA v2": VQA_V2}.items():
        place = folder / name.replace(" ", "-")
        data = write_splits(shape, FEW, place, questions).with_name("test.jsonl")
        found = in_turns(
            {
                "one by one": lambda _, data=data, place=place: one_by_one(model, data, place / "one"),
                "vlmexp": lambda _, data=data, place=place: ours(model, data, place, questions),
            },
            rounds,
        )
        first = found["one by one"]
        assert not isinstance(first, str)
        for way, answered in found.items():
            if isinstance(answered, str):
                rows.append([f"{name}, {way}", answered, "", ""])
                continue
            rates, base = [one.rate for one in answered], [one.rate for one in first]
            same = sum(a == b for a, b in zip(answered[0].answers, first[0].answers, strict=True))
            ratio = statistics.median(rates) / statistics.median(base)
            rows.append([f"{name}, {way}", spread(rates), f"{ratio:.2f}", f"{same} of {questions}"])
    return ABOUT + "\n" + table(["", "questions/s", "ratio", "same answers"], rows)


def one_by_one(model: Path, data: Path, folder: Path) -> Answered:
    """As one would write it in a notebook."""
    command = [sys.executable, "-m", "tests.benchmarks.one_by_one", model, data, str(NEW_TOKENS)]
    said = json.loads(spent(command, folder).output.splitlines()[-1])
    return Answered(said["seconds"], len(said["answers"]), said["answers"])


def ours(model: Path, data: Path, folder: Path, questions: int) -> Answered:
    """All questions, less what a few of them take.

    Raises:
        Unavailable: so few questions take no longer than the noise.
    """
    few_s, _ = evaluated(model, data, folder, FEW)
    all_s, answers = evaluated(model, data, folder, questions)
    if all_s <= few_s:
        raise Unavailable(f"{questions} questions take no longer than {FEW}")
    return Answered(all_s - few_s, questions - FEW, answers)


def evaluated(model: Path, data: Path, folder: Path, questions: int) -> tuple[float, list[str]]:
    """Seconds of the whole command, and the answers in the order of the rows."""
    run = folder / f"run{questions}"
    shutil.rmtree(run, ignore_errors=True)
    command = [
        sys.executable, "-m", "vlmexp", "stage=eval_base", "model=tiny", f"model.id={model}", "dataset=files",
        "dataset.convert=never", f"dataset.options.test={data}", "dataset.prompt=['{question}']", "threads=1",
        "evaluation.blind=none", "evaluation.invariance_examples=0", f"evaluation.max_new_tokens={NEW_TOKENS}",
        f"evaluation.max_examples={questions}", f"hydra.run.dir={run}",
    ]  # fmt: skip
    used = spent(command, folder, {"VLMEXP_DATA": str(folder / "prepared")})
    lines = read_jsonl(run / "evaluation" / "base_vlm_model_predictions.jsonl")
    answers = {int(line["id"].rpartition("-")[2]): line["prediction"].strip() for line in lines}
    return used.wall_s, [answers[place] for place in sorted(answers)]
