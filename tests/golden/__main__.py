"""Reads a folder of golden rows, puts each through the product's own prompt and scoring, and says what differs.

    python -m tests.golden FOLDER

A folder has `<benchmark>.jsonl` (rows in the published schema with `prompt`, `prediction` and `scores`),
`<benchmark>_aggregate.json`, `captions.json` and `vqa_rules_extra.jsonl`, made by other implementations. Exits with 1
if anything differs that is not listed in PURPOSES.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from omegaconf import OmegaConf

from vlmexp.checks import checked
from vlmexp.collator.prompt import PromptTemplate
from vlmexp.config import Config, used_columns
from vlmexp.data.example import Example, to_example
from vlmexp.data.refcoco import refcoco_rows
from vlmexp.data.shaping import shaped
from vlmexp.evaluation.coco_caption import coco_caption
from vlmexp.evaluation.metrics import corpus_cider, vqa_accuracy, vqa_accuracy_2015
from vlmexp.evaluation.reasoning import without_reasoning
from vlmexp.evaluation.row import row_of
from vlmexp.evaluation.score import Scores, summarise
from vlmexp.evaluation.words import folded
from vlmexp.main import CONFIG_DIR
from vlmexp.models.load import ModelSource, load_processor
from vlmexp.parts import build_collator

CLOSE, CLOSE_BOXES = 1e-9, 1e-6

# Where this project differs on purpose: name -> (reason, of which rows). Each has a test in tests/evaluation.
PURPOSES: dict[str, tuple[str, Callable[[str, Mapping[str, Any]], bool]]] = {
    "one answer": (
        "a single answer counts as given by all ten annotators; leaving it out leaves nothing, and always 0",
        lambda name, row: name in VQA and len(row["answers"] or ()) == 1,
    ),
    "vqav2": (
        "VQA v2 is scored as TextVQA, OK-VQA and VizWiz are; lmms-eval's task leaves out the first steps of EvalAI's "
        "processing (commas, question marks and 's), which the others have",
        lambda name, row: name == "vqav2" and _has_evalai_signs([row["prediction"], *_texts(row["answers"])]),
    ),
    "signs beyond ASCII": (
        "what looks alike is alike: a minus, a full-width digit or a curly quote is that of ASCII",
        lambda name, row: (
            name in ("chartqa", "docvqa", "infovqa", *VQA)
            and any(folded(t) != t for t in [row["prediction"], *_texts(row.get("answers", row.get("answer")))])
        ),
    ),
    "no answer": (
        "a row whose answers are all empty is a bad row, which is not asked",
        lambda name, row: "answer" in row and not any(text.strip() for text in _texts(row["answer"])),
    ),
    "read at random": (
        "a letter that MMMU's code draws at random is wrong here, and counted",
        lambda name, row: name == "mmmu" and row["scores"]["mmmu_acc"] is None,
    ),
}  # fmt: skip
VQA = ("vqav2", "textvqa", "ok_vqa", "vizwiz_vqa")


@dataclass(frozen=True)
class Benchmark:
    """How the golden data of a benchmark are compared.

    Attributes:
        dataset: the choice of `dataset=`.
        scores: golden name of a row's score -> ours.
        aggregates: golden name of an aggregate -> where it is in our summary, and what it is multiplied with.
        close: up to where two numbers are equal.
    """

    dataset: str
    scores: Mapping[str, str]
    aggregates: Mapping[str, str] = field(default_factory=dict)
    scale: float = 1.0
    close: float = CLOSE


def _same(dataset: str, ours: str, *theirs: str) -> Benchmark:
    return Benchmark(dataset, dict.fromkeys(theirs, ours), dict.fromkeys(theirs, ours))


THRESHOLDS = ("IoU", *(f"ACC@{t}" for t in (0.1, 0.3, 0.5, 0.7, 0.9)), "Center_ACC")
POPE = ("pope_accuracy", "pope_precision", "pope_recall", "pope_f1_score", "pope_yes_ratio")
BENCHMARKS = {
    "vqav2": _same("vqav2", "vqa_accuracy", "exact_match"),
    "textvqa": _same("textvqa", "vqa_accuracy", "exact_match"),
    "ok_vqa": _same("okvqa", "vqa_accuracy", "exact_match"),
    "vizwiz_vqa": _same("vizwiz", "vqa_accuracy", "exact_match"),
    "gqa": _same("gqa", "gqa_accuracy", "exact_match"),
    "docvqa": _same("docvqa", "anls", "anls"),
    "infovqa": _same("infovqa", "anls", "anls"),
    "chartqa": Benchmark(
        "chartqa",
        {"relaxed_overall": "relaxed_accuracy"},
        {
            "relaxed_overall": "relaxed_accuracy",
            "relaxed_human_split": "type/human_test/relaxed_accuracy",
            "relaxed_augmented_split": "type/augmented_test/relaxed_accuracy",
        },
    ),
    "ai2d": _same("ai2d", "ai2d_accuracy", "exact_match"),
    "scienceqa": _same("scienceqa", "scienceqa_accuracy", "exact_match"),
    "scienceqa_img": _same("scienceqa_img", "scienceqa_accuracy", "exact_match"),
    "pope": Benchmark("pope", {"score": "pope_accuracy"}, {name: name for name in POPE}),
    "mmmu": Benchmark("mmmu", {"mmmu_acc": "mmmu_accuracy"}, {"release_0_7_3/mmmu_acc": "read/mmmu_accuracy"}, 1, 5e-6),
    "mmbench_en_dev": Benchmark(
        "mmbench",
        {"hit_alone": "mmbench_accuracy"},
        {"gpt_eval_score": "100*mmbench_circular", "details/overall_acc": "mmbench_circular",
         "details/category_acc/*": "category/*/mmbench_circular",
         "details/l2_category_acc/*": "L2-category/*/mmbench_circular"},
    ),
    "realworldqa": _same("realworldqa", "realworldqa_accuracy", "exact_match"),
    "mmstar": Benchmark(
        "mmstar", {"average": "mmstar_accuracy"}, {"average": "mmstar_average", "*": "category/*/mmstar_average"}
    ),
    "seedbench": Benchmark(
        "seedbench",
        {"seed_all": "seedbench_accuracy"},
        {"seed_all": "seedbench_accuracy", "seed_image": "data_type/image/seedbench_accuracy",
         "seed_video": "data_type/video/seedbench_accuracy"},
    ),
    "ocrbench": Benchmark(
        "ocrbench", {"ocrbench_accuracy": "ocrbench_accuracy"}, {"ocrbench_accuracy": "n/1000*ocrbench_accuracy"}
    ),
    "mme": Benchmark(
        "mme",
        {"mme_perception_score": "mme_accuracy", "mme_cognition_score": "mme_accuracy"},
        {name: name for name in ("mme_perception_score", "mme_cognition_score")},
    ),
    "refcoco_bbox_rec": Benchmark(
        "refcoco", *[{f"refcoco_{name}": f"refcoco_{name}" for name in THRESHOLDS}] * 2, close=CLOSE_BOXES
    ),
    "refcoco_grounding": Benchmark(
        "refcoco_grounding",
        *[{f"refcoco_grounding_{name}": f"grounding_{name}" for name in THRESHOLDS}] * 2,
        close=CLOSE_BOXES,
    ),
}  # fmt: skip


@dataclass
class Count:
    """How many were equal, of how many; differences on purpose by their name; the others in words."""

    equal: int = 0
    n: int = 0
    purposes: dict[str, int] = field(default_factory=dict)
    differences: list[str] = field(default_factory=list)

    def add(self, is_equal: bool, what: str, purpose: str | None = None) -> None:
        self.n += 1
        self.equal += is_equal or purpose is not None
        if not is_equal and purpose is not None:
            self.purposes[purpose] = self.purposes.get(purpose, 0) + 1
        elif not is_equal:
            self.differences.append(what)


def compare(name: str, folder: Path, config: Config, template: PromptTemplate) -> dict[str, Count]:
    """What equals the golden data of a benchmark, by kind."""
    benchmark = BENCHMARKS[name]
    given = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]
    examples = [_example(row, number, config) for number, row in enumerate(given)]
    said = [row["prediction"].strip() for row in given]
    scores, _ = _summary(said, examples, config)
    prompts, values, sums = Count(), Count(), Count()
    ours: list[float] = []
    for row, example, found in zip(given, examples, scores, strict=True):
        text = _shown(template, example)
        prompts.add(text == row["prompt"], f"{name} {example.id}: prompt {text!r} is {row['prompt']!r} there")
        golden = row.get("scores_release_0_7_3", row["scores"])
        purpose = next((title for title, (_, fits) in PURPOSES.items() if fits(name, row)), None)
        wanted = {ours: golden[theirs] for theirs, ours in benchmark.scores.items() if theirs in golden}
        is_equal = all(
            value is not None and abs(found[key] - value) <= benchmark.close for key, value in wanted.items()
        )
        what = f"{name} {example.id}: {row['prediction']!r} has {found}, and there {golden}"
        values.add(is_equal, what, purpose)
        ours.append(next((value or 0.0 for key, value in wanted.items()), 0.0))
    path = folder / f"{name}_aggregate.json"
    for title, parts in json.loads(path.read_text(encoding="utf-8")).items() if path.is_file() else ():
        first, last = (int(number) for number in title.split("_")[1:])
        chosen = slice(None) if last - first + 1 == len(given) else slice(first, last + 1)
        kept = [i for i in range(len(given))[chosen] if name != "mmmu" or given[i]["scores"]["mmmu_acc"] is not None]
        summary = _summary([said[i] for i in kept], [examples[i] for i in kept], config)[1]
        metric = next(iter(benchmark.scores.values()))
        for key, path_here, value in _aggregates(benchmark, parts):
            here = _looked_up(summary, path_here)
            group = [i for i in kept if _is_in(examples[i], path_here)]
            # What differs on purpose in a row moves the mean.
            moved = value + sum(scores[i][metric] - ours[i] for i in group) / len(group) * path_here.endswith(metric)
            sums.add(abs(here - moved) <= benchmark.close, f"{name} {title}: {key} is {here}, and there {value}")
    return {"prompts": prompts, "scores": values, "aggregates": sums}


def _aggregates(benchmark: Benchmark, parts: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """(golden name, ours, golden value); `*` stands for the names of groups."""
    found = []
    for theirs, ours in benchmark.aggregates.items():
        node: Any = parts
        *before, last = theirs.split("/")
        for step in before:
            node = node[step]
        if last != "*":
            found += [(theirs, ours, node[last])] if last in node else []
            continue
        plain = {"n", "n_by_metric", "average", "details"}
        groups = [name for name in node if name not in plain and not name.endswith("_stderr")]
        found += [(f"{theirs}{name}", ours.replace("*", name), node[name]) for name in groups]
    return found


def _looked_up(summary: Mapping[str, Any], path: str) -> float:
    factor = 1.0
    if path.startswith("100*"):
        factor, path = 100.0, path.removeprefix("100*")
    if path.startswith("n/1000*"):
        factor, path = summary["n"] / 1000, path.removeprefix("n/1000*")
    path = path.removeprefix("read/")
    column, _, rest = path.partition("/")
    node = summary["by"][column][rest.rpartition("/")[0]] if rest else summary
    value = node["metrics"][path.rpartition("/")[2]]
    return math.nan if value is None else factor * value


def _is_in(example: Example, path: str) -> bool:
    """Whether an example belongs to the group that the path of an aggregate names."""
    column, _, rest = path.partition("/")
    metadata = example.metadata or {}
    return column not in metadata or str(metadata[column]) == rest.rpartition("/")[0]


def _summary(said: Sequence[str], examples: Sequence[Example], config: Config) -> tuple[Scores, dict[str, Any]]:
    rows = [row_of(example) for example in examples]
    return summarise(said, rows, config.dataset.metrics, config.dataset.metadata)


def _example(row: dict[str, Any], number: int, config: Config) -> Example:
    """A published row as the product reads it, without its image."""
    options = config.dataset.options
    named = {name: options[name] for name in ("where", "gathered", "edits", "each", "choices") if options.get(name)}
    row = {"id": str(number), **row}
    if config.dataset.source == "refcoco":
        texts = list(refcoco_rows([row], options["form"]))
        (row,) = [one for one in texts if one["text"] == row.get("doc", {}).get("answer", one["text"])]
    (row,) = shaped([row], **named)
    columns = {role: column for role, column in used_columns(config).items() if role != "image"}
    metadata = [*config.dataset.metadata, *config.dataset.kept]
    return to_example({**row, "id": str(number)}, columns, metadata, Path())


def _shown(template: PromptTemplate, example: Example) -> str:
    """What the user says in the prompt."""
    return template.prompt(example).text.partition("<|im_start|>user\n")[2].rpartition("<|im_end|>")[0]


def _texts(answers: Any) -> list[str]:
    values = answers if isinstance(answers, list) else [answers]
    return [value["answer"] if isinstance(value, dict) else str(value) for value in values if value is not None]


def _has_evalai_signs(texts: Sequence[str]) -> bool:
    return any(sign in text for text in texts for sign in (",", "?", "'s"))


def compare_captions(path: Path) -> dict[str, Count]:
    """BLEU-1 to -4, ROUGE-L and CIDEr of a corpus against those of coco-caption."""
    golden, count = json.loads(path.read_text(encoding="utf-8")), Count()
    said, meant = [row["prediction"] for row in golden["rows"]], [row["references"] for row in golden["rows"]]
    ours = {**coco_caption(said, meant), "cider": corpus_cider(said, meant)}
    names = {"Bleu_1": "coco_bleu1", "Bleu_2": "coco_bleu2", "Bleu_3": "coco_bleu3", "Bleu_4": "coco_bleu4"}
    for theirs, name in {**names, "ROUGE_L": "coco_rougeL", "CIDEr": "cider"}.items():
        value = golden["ptb_tokenizer"]["corpus"][theirs]
        count.add(abs(ours[name] - value) <= CLOSE, f"captions: {theirs} is {ours[name]}, and there {value}")
    return {"aggregates": count}


def compare_reasoning(path: Path) -> dict[str, Count]:
    """What is left of a response with reasoning between tags."""
    count = Count()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found = without_reasoning(row["raw"].strip())
        count.add(
            found == row["stripped"], f"reasoning_tags: {row['raw']!r} gives {found!r}, and there {row['stripped']!r}"
        )
    return {"texts": count}


def compare_rules(path: Path) -> dict[str, Count]:
    """Both VQA accuracies against EvalAI's and the official code's."""
    now, then = Count(), Count()
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        of = row["prediction"], row["answers"]
        purpose = "one answer" if len(row["answers"]) == 1 else None
        now.add(abs(vqa_accuracy(*of) - row["evalai"]) <= CLOSE, f"vqa_accuracy of {of}", purpose)
        then.add(abs(vqa_accuracy_2015(*of) - row["official_accuracy"]) <= CLOSE, f"vqa_accuracy_2015 of {of}")
    return {"vqa_accuracy": now, "vqa_accuracy_2015": then}


def run(folder: Path) -> list[str]:
    """Print a line for each benchmark whose file is there; the differences that are nobody's purpose."""
    processor = load_processor(ModelSource("vlmexp:tiny"), print)
    differences: list[str] = []
    found: list[tuple[str, dict[str, Count]]] = []
    for name, benchmark in BENCHMARKS.items():
        if (folder / f"{name}.jsonl").is_file():
            config = compose(benchmark.dataset)
            found.append((name, compare(name, folder, config, build_collator(config, processor).template)))
    if (folder / "captions.json").is_file():
        found.append(("captions", compare_captions(folder / "captions.json")))
    if (folder / "reasoning_tags.jsonl").is_file():
        found.append(("reasoning_tags", compare_reasoning(folder / "reasoning_tags.jsonl")))
    for rules in ("vqa_rules_extra", "vqa_accuracy"):
        if (folder / f"{rules}.jsonl").is_file():
            found.append((rules, compare_rules(folder / f"{rules}.jsonl")))
    for name, counts in found:
        purposes: dict[str, int] = {}
        for count in counts.values():
            purposes |= count.purposes
            differences += count.differences
        told = f"  (on purpose: {', '.join(f'{n} {why}' for why, n in purposes.items())})" if purposes else ""
        print(f"{name}: {', '.join(f'{kind} {count.equal}/{count.n}' for kind, count in counts.items())}{told}")
    return differences


def compose(dataset: str) -> Config:
    """The default configuration with a data set."""
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(CONFIG_DIR)):
        composed = hydra.compose("config", [f"dataset={dataset}", "stage=eval_base", "paths.data=data"])
    OmegaConf.resolve(composed)
    return checked(composed)


def main() -> None:
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("python -m tests.golden FOLDER")
    differences = run(Path(sys.argv[1]))
    for difference in differences:
        print(f"  {difference}")
    for name, (reason, _) in PURPOSES.items():
        print(f"On purpose, {name}: {reason}.")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
