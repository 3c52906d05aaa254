"""A second opinion: lmms-eval and this project ask one small exported checkpoint the same local rows, row by row.

    python -m tests.benchmarks.against_lmms_eval
    python -m tests.benchmarks.against_lmms_eval --benchmarks pope mmmu --environment FOLDER --folder FOLDER

lmms-eval comes from PyPI into an environment of its own, which also sees the packages that are here (torch,
transformers); with `--environment` it stays, and is used again. A LLaVA of two layers learns to say, to each golden
question, what the golden row has as its prediction, so that answers are right and wrong in many forms; it is trained
and exported by this project's own stages. lmms-eval's own command line then loads it with its own model class, and runs
its own tasks on replicas in the published schema; `stage=eval_base` reads the same folders.

A line a benchmark: in how many rows the prompt (tokens and pixels), the answer and the score are equal, and how many
metrics over all rows; differences on purpose are counted as equal and named, the others are listed, and the exit code
is 1 if there are any. Of MMBench only the first row of each question has a score of its own in lmms-eval.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from tests.conftest import cli_environment
from tests.data.test_benchmarks import golden_rows, prepared_from, written
from tests.golden.__main__ import BENCHMARKS, PURPOSES, Count, _aggregates, _looked_up
from tests.models.families import write_checkpoint
from vlmexp.checks import checked
from vlmexp.config import Config
from vlmexp.data.example import Example
from vlmexp.data.stage import load_split
from vlmexp.evaluation.row import row_of
from vlmexp.evaluation.score import summarise
from vlmexp.evaluation.stage import eval_base
from vlmexp.files import read_json, read_jsonl, write_json, write_jsonl
from vlmexp.main import CONFIG_DIR
from vlmexp.models.load import load_processor
from vlmexp.parts import build_collator, model_source
from vlmexp.runs import Run

LMMS_EVAL = ("lmms-eval==0.7.3", "filelock<4")  # this version of it asks for a module that filelock 4 no longer has
RUNNER = Path(__file__).with_name("lmms_eval_runner.py")
FAMILY, MODEL_CLASS = "llava15", "llava_hf"  # lmms-eval's other chat classes load in bfloat16, or write images as JPEG
LEARNING = [
    "peft=none", "train.per_device_train_batch_size=16", "train.gradient_accumulation_steps=1",
    "train.gradient_checkpointing=false", "train.learning_rate=4e-3", "train.lr_scheduler_type=cosine",
    "train.warmup_steps=30", "train.eval_strategy=no", "train.save_strategy=no", "dataset.validation_fraction=0",
    "dataset.convert=never", "dataset.prompt=['{question}']",
]  # fmt: skip
ROWS = 20
NOT_COMPARED = {"vqav2": "read from the official archives here, and as parquet there"}
NAMES = [name for name in BENCHMARKS if name not in NOT_COMPARED]
TASKS = {  # lmms-eval's names, where they are not those of the golden files
    "textvqa": "textvqa_val", "ok_vqa": "ok_vqa_val2014", "vizwiz_vqa": "vizwiz_vqa_val", "docvqa": "docvqa_val",
    "infovqa": "infovqa_val", "mmmu": "mmmu_val", "mmbench_en_dev": "mmbench_en_dev_static",
    "refcoco_bbox_rec": "refcoco_bbox_rec_val", "refcoco_grounding": "refcoco_grounding_test",
}  # fmt: skip
# Where lmms-eval's score of a row is called otherwise than in the golden files.
ROW_SCORES = {"pope": {"pope_accuracy": "pope_accuracy"}, "mmbench_en_dev": {"gpt_eval_score": "mmbench_accuracy"}}
SCALES = {"gpt_eval_score": 100.0}
UNLIMITED = ("textvqa", "ok_vqa", "vizwiz_vqa", "seedbench", "mmstar", "refcoco_bbox_rec")  # no number of tokens there
# Differences on purpose that golden rows, which have predictions and no model, do not show.
LIMIT, PLACES = "limit", "places"
MORE_PURPOSES = {
    LIMIT: "an answer ends at the limit of our data set, where lmms-eval sets none and its model's own is longer",
    PLACES: (
        "an image stands where the question names it, with the blanks about it; lmms-eval takes the blanks off, and "
        "leaves the order to the chat template, where LLaVA 1.5 has all images first"
    ),
}


def environment(folder: Path) -> Path:
    """The interpreter of lmms-eval's environment, which is made unless it is there."""
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        print(f"installing {LMMS_EVAL[0]} into {folder}", flush=True)
        venv.create(folder, with_pip=True, clear=True)
        shared = [path for path in sys.path if path.endswith("site-packages")]
        (next(folder.glob("lib/python*/site-packages")) / "shared.pth").write_text("\n".join(shared) + "\n")
        subprocess.run([python, "-m", "pip", "install", "-qq", *LMMS_EVAL], check=True)
        (folder / "complete").touch()
    return python


def logged(command: Sequence[str | Path], folder: Path, variables: Mapping[str, str]) -> None:
    """Run a command in a folder, its output in `log.txt`."""
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        done = subprocess.run(command, cwd=folder, env=variables, stdout=log, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} failed:\n{(folder / 'log.txt').read_text()[-3000:]}")


@contextlib.contextmanager
def quiet(folder: Path) -> Iterator[None]:
    """Progress bars and tables go to `log.txt`."""
    with (
        (folder / "log.txt").open("a", encoding="utf-8") as log,
        contextlib.redirect_stderr(log),
        contextlib.redirect_stdout(log),
    ):
        yield


def config_of(name: str, folder: Path) -> Config:
    """How the exported model is evaluated on a benchmark's replica."""
    dataset, model = BENCHMARKS[name].dataset, folder / "trained" / "deployment_model"
    given = [
        f"dataset={dataset}",
        f"dataset.options.path={folder / 'replicas' / dataset}",
        f"paths.data={folder / 'data'}",
    ]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        composed = hydra.compose("config", [*given, "stage=eval_base", f"model={FAMILY}", f"model.id={model}"])
    OmegaConf.resolve(composed)
    return checked(composed)


def asked(name: str) -> list[tuple[int, dict[str, Any]]]:
    """Number and golden row of those that have an answer; the others are bad rows here."""
    rows = golden_rows(name)[:ROWS]
    return [(number, row) for number, row in enumerate(rows) if row.get("answers", True)]


def checkpoint(folder: Path, examples: Mapping[str, Sequence[Example]], steps: int) -> Path:
    """A small exported model that answers the golden questions as the golden rows do."""
    model = folder / "trained" / "deployment_model"
    if model.exists():
        return model
    with quiet(folder):
        write_checkpoint(FAMILY, folder / "base")
    rows = [
        {"image": [str(path) for path in one.images], "question": row["prompt"], "answer": row["prediction"].strip()}
        for name, found in examples.items()
        for (_, row), one in zip(asked(name), found, strict=True)
        if row["prediction"].strip() and one.images
    ]
    write_jsonl(folder / "train.jsonl", rows)
    print(f"teaching a small {FAMILY} {len(rows)} answers in {steps} steps", flush=True)
    data = ["dataset=files", "dataset.options.train=train.jsonl"]
    run = [f"model.id={folder / 'base'}", "hydra.run.dir=trained", f"train.max_steps={steps}"]
    command = [sys.executable, "-m", "vlmexp", "stage=train", f"model={FAMILY}", *data, *run, *LEARNING]
    logged(command, folder, cli_environment(folder / "data"))
    return model


def ask_theirs(folder: Path, python: Path, model: Path, names: Sequence[str]) -> dict[str, Any]:
    """What lmms-eval was given, answered and scored: see `lmms_eval_runner`."""
    (package,) = python.parent.parent.glob("lib/python*/site-packages/lmms_eval")
    metrics, local, tasks = {}, {}, folder / "tasks"
    tasks.mkdir(exist_ok=True)
    for name in names:
        task, config = TASKS.get(name, name), config_of(name, folder)
        (path,) = (package / "tasks").rglob(f"{task}.yaml")
        place = config.dataset.options["path"]
        own = {"include": str(path), "task": f"local_{task}", "dataset_path": place, "dataset_kwargs": {}}
        write_json(tasks / f"local_{task}.yaml", own)  # JSON is YAML, too
        metrics[f"local_{task}"] = list(ROW_SCORES.get(name, BENCHMARKS[name].scores))
        if name == "gqa":  # the code of this task names its table of images
            local["lmms-lab-encoder/GQA"] = place
    record = folder / "theirs.json"
    write_json(record, {"metrics": metrics, "local": local})
    options = {
        "model": MODEL_CLASS, "model_args": f"pretrained={model},device=cpu,device_map=cpu,dtype=float32",
        "tasks": ",".join(metrics), "include_path": tasks, "batch_size": 1, "output_path": folder / "theirs",
    }  # fmt: skip
    given = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hub"), "CUDA_VISIBLE_DEVICES": ""}
    logged([python, RUNNER, record, *given, "--log_samples"], folder, os.environ | offline)
    found = dict(read_json(record))
    if "rows" not in found:  # its command line ends well whatever happened
        sys.exit(f"lmms-eval failed:\n{(folder / 'log.txt').read_text()[-3000:]}")
    return found


def ask_ours(name: str, folder: Path) -> Path:
    """Evaluate the exported model as `stage=eval_base` does; where the results are."""
    config, place = config_of(name, folder), folder / "ours" / name
    shutil.rmtree(place, ignore_errors=True)
    with quiet(folder), Run.open(place, config, []) as run:
        eval_base(config, run)
    return place / "evaluation"


def compare(
    name: str, folder: Path, results: Path, examples: Sequence[Example], record: Mapping[str, Any]
) -> dict[str, Count]:
    """Prompts, answers, scores and aggregates of a benchmark."""
    benchmark, task = BENCHMARKS[name], f"local_{TASKS.get(name, name)}"
    lines = list(read_jsonl(results / "base_vlm_model_predictions.jsonl"))
    config = config_of(name, folder)
    processor = load_processor(model_source(config), print)
    collator = build_collator(config, processor)
    rows = [(number, row, record["rows"][task][number]) for number, row in asked(name)]
    said = [theirs["answer"].strip() for *_, theirs in rows]
    # Scores are those of lmms-eval's answers, so that one which differs costs no more than itself.
    scored, summary = summarise(
        said, [row_of(one) for one in examples], config.dataset.metrics, config.dataset.metadata
    )
    prompts, answers, scores = Count(), Count(), Count()
    for (number, row, theirs), example, line, own in zip(rows, examples, lines, scored, strict=True):
        batch, where, there = collator.prompts([example]), f"{name} {number}", theirs["answer"].strip()
        tokens = batch["input_ids"][0].tolist()
        is_same = tokens == theirs["tokens"] and _digest(batch.get("pixel_values")) == theirs["pixels"]
        texts = [processor.tokenizer.decode(ids) for ids in (tokens, theirs["tokens"])]
        has_places = "<image 1>" in row["question"] and len({_words(text) for text in texts}) == 1
        moved = PLACES if not is_same and has_places else None
        prompts.add(is_same, f"{where}: the prompt {texts[0]!r} is {texts[1]!r} there, or its pixels differ", moved)
        is_cut = name in UNLIMITED and bool(line.get("cut")) and there.startswith(line["prediction"].strip())
        is_equal = line["prediction"] == there
        told = f"{where}: the answer {line['prediction']!r} is {there!r} there"
        answers.add(is_equal, told, LIMIT if is_cut else moved)
        unread = {"mmmu_acc": None if own.get("mmmu_unread") else 1.0}
        given = row | {"prediction": there, "scores": unread}
        purpose = next((title for title, (_, fits) in PURPOSES.items() if fits(name, given)), None)
        for metric, ours in ROW_SCORES.get(name, benchmark.scores).items():
            if (value := theirs["scores"].get(metric)) is not None:
                value /= SCALES.get(metric, 1.0)
                here = line["scores"][ours] if is_equal else own[ours]
                told = f"{where}: {there!r} has {ours}={here}, and {value} there"
                scores.add(abs(here - value) <= benchmark.close, told, purpose)
    purpose = next(iter(scores.purposes), None)  # what differs on purpose in a row moves the mean
    sums = compare_aggregates(name, summary, record["summary"][task], purpose)
    return {"prompts": prompts, "answers": answers, "scores": scores, "aggregates": sums}


def compare_aggregates(name: str, ours: Mapping[str, Any], theirs: Mapping[str, float], purpose: str | None) -> Count:
    """The metrics over all rows."""
    benchmark, sums = BENCHMARKS[name], Count()
    flat = {there.removeprefix("release_0_7_3/"): here for there, here in benchmark.aggregates.items()}
    flat = {there: here for there, here in flat.items() if "/" not in there}  # details are in none of its tables
    for key, path, value in _aggregates(replace(benchmark, aggregates=flat), theirs):
        here = _looked_up(ours, path)
        sums.add(abs(here - value) <= benchmark.close, f"{name}: {key} is {here}, and {value} there", purpose)
    return sums


def _words(text: str) -> str:
    """A prompt without its images and the blanks about them."""
    return " ".join(text.replace("<image>", " ").split())


def _digest(pixels: Any) -> str | None:
    """As `lmms_eval_runner` makes it."""
    if pixels is None:
        return None
    return hashlib.sha256(str(tuple(pixels.shape)).encode() + pixels.float().contiguous().numpy().tobytes()).hexdigest()


def replica(name: str, folder: Path) -> list[Example]:
    """Write the first golden rows in the published schema, and read them."""
    config = config_of(name, folder)
    place = Path(config.dataset.options["path"])
    with quiet(folder):
        if not place.exists():
            written(name, config.dataset.name, config.dataset.splits["test"], place, ROWS)
        return list(load_split(config, prepared_from(config, folder / "data"), "test"))


def run(folder: Path, python: Path, names: Sequence[str], steps: int) -> int:
    """Print the lines; how many differences are nobody's purpose."""
    (folder / "replicas").mkdir(exist_ok=True)
    examples = {name: replica(name, folder) for name in names}
    model = checkpoint(folder, examples, steps)
    print("asking with lmms-eval", flush=True)
    record = ask_theirs(folder, python, model, names)
    print("asking with vlmexp", flush=True)
    results = {name: ask_ours(name, folder) for name in names}
    differences: list[str] = []
    purposes: set[str] = set()
    for name in names:
        counts = compare(name, folder, results[name], examples[name], record)
        found = [(n, f"{why} in {kind}") for kind, count in counts.items() for why, n in count.purposes.items()]
        purposes |= {why for count in counts.values() for why in count.purposes}
        told = f"  (on purpose: {', '.join(f'{n} {why}' for n, why in found)})" if found else ""
        left = len(golden_rows(name)[:ROWS]) - len(examples[name])
        told += f"  ({left} bad rows not asked)" if left else ""
        print(f"{name}: {', '.join(f'{kind} {c.equal}/{c.n}' for kind, c in counts.items())}{told}")
        differences += [difference for count in counts.values() for difference in count.differences]
    for difference in differences:
        print(f"  {difference}")
    for title, reason in ({key: why for key, (why, _) in PURPOSES.items()} | MORE_PURPOSES).items():
        if title in purposes:
            print(f"On purpose, {title}: {reason}.")
    for name, reason in NOT_COMPARED.items():
        print(f"Not compared, {name}: {reason}.")
    return len(differences)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--benchmarks", nargs="+", choices=NAMES, default=NAMES, metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--environment", type=Path, help="folder of lmms-eval's environment; kept and used again")
    parser.add_argument("--folder", type=Path, help="for data, model and answers; kept, its model used again")
    parser.add_argument("--steps", type=int, default=600, help="of the training of the small model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.folder or Path(temporary, "work")).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        python = environment((given.environment or Path(temporary, "environment")).resolve())
        sys.exit(1 if run(folder, python, given.benchmarks, given.steps) else 0)


if __name__ == "__main__":
    main()
