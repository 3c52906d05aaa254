"""Processor seconds and memory to prepare a data set of VQA v2's size and to count its tokens, and to begin again."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

from tests.benchmarks.processes import Spent, spent, table
from tests.benchmarks.shapes import WORDS, write_image
from tests.benchmarks.training import checkpoint

TITLE = "Preparation"
MINUTES = 5
SIZES = {"train2014": (443_757, 82_783, "Train"), "val2014": (214_354, 40_504, "Val")}  # questions, images, name
ABOUT = """
VQA v2's shape in its official form (5.3 questions an image, ten answers each, images of 64 px), at a hundredth, at a
tenth, and with `--whole` in full: `stage=download` prepares it, `stage=train train.max_steps=1` counts its tokens and
makes a step; then the same training in a new run. Processor seconds on all threads and in all processes, of the whole
commands, imports included; memory of the largest process.
"""


def measure(folder: Path, rounds: int, whole: bool = False, shares: tuple[int, ...] = (100, 10)) -> str:
    """A table with a line a size; it grows as it is, and is measured once whatever the rounds."""
    model, rows = checkpoint(folder), list[list[str]]()
    for share in (*shares, 1) if whole else shares:
        root = folder / f"official-{share}"
        questions, images = write_official(root, share)
        prepared, counted, again = (command(root, model, stage) for stage in ("download", "train", "train"))
        rows.append(
            [
                f"{questions:,} questions, {images:,} images", f"{prepared.cpu_s:.1f}", f"{counted.cpu_s:.1f}",
                f"{prepared.peak_mib:,.0f}", f"{counted.peak_mib:,.0f}", f"{again.seen_s:.1f} ({again.cpu_s:.1f})",
            ]
        )  # fmt: skip
        shutil.rmtree(root)
        print(rows[-1], flush=True)
    heads = [
        "", "prepare, CPU s", "count and a step, CPU s", "prepare, MiB", "count and a step, MiB",
        "again: seconds to the first step (CPU s)",
    ]  # fmt: skip
    return ABOUT + "\n" + table(heads, rows)


def command(root: Path, model: Path, stage: str) -> Spent:
    """A stage on the data, in a new run."""
    run = root / "run"
    shutil.rmtree(run, ignore_errors=True)
    training = [
        "train.max_steps=1", "train.logging_steps=1", "train.save_strategy=no", "train.eval_strategy=no",
        "export.parity_examples=0",
    ]  # fmt: skip
    line = [
        sys.executable, "-m", "vlmexp", f"stage={stage}", "model=tiny", f"model.id={model}", "dataset=vqav2",
        f"dataset.options.root={root}", "dataset.options.download=false", f"hydra.run.dir={run}",
        *(training if stage == "train" else []),
    ]  # fmt: skip
    return spent(line, root, {"VLMEXP_DATA": str(root / "prepared")}, watched=run / "metrics.jsonl")


def write_official(root: Path, share: int) -> tuple[int, int]:
    """Write one part in `share` of VQA v2's questions, annotations and images; how many questions and images."""
    rng, counts = random.Random(share), [0, 0]
    for coco, (questions, images, _) in SIZES.items():
        asked, drawn = questions // share, images // share
        (root / coco).mkdir(parents=True)
        for number in range(drawn):
            write_image(root / coco / f"COCO_{coco}_{number:012d}.jpg", (64, 64), rng.getrandbits(62))
        rows = [(place, place * drawn // asked) for place in range(asked)]
        (root / f"v2_OpenEnded_mscoco_{coco}_questions.json").write_text(
            json.dumps({"questions": [question(place, image, rng) for place, image in rows]})
        )
        (root / f"v2_mscoco_{coco}_annotations.json").write_text(
            json.dumps({"annotations": [annotation(place, image, rng) for place, image in rows]})
        )
        counts = [counts[0] + asked, counts[1] + drawn]
    return counts[0], counts[1]


def question(place: int, image: int, rng: random.Random) -> dict[str, object]:
    """An official question."""
    text = " ".join(rng.choices(WORDS, k=rng.randint(4, 9))) + "?"
    return {"image_id": image, "question": text, "question_id": place}


def annotation(place: int, image: int, rng: random.Random) -> dict[str, object]:
    """The ten answers to an official question."""
    answers = [
        {"answer": word, "answer_confidence": "yes", "answer_id": number}
        for number, word in enumerate(rng.choices(WORDS[:4], k=10), start=1)
    ]
    return {
        "question_type": "what", "multiple_choice_answer": answers[0]["answer"], "answers": answers, "image_id": image,
        "answer_type": "other", "question_id": place,
    }  # fmt: skip
