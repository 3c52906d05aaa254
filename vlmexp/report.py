"""What a run prints at its end: a table and the paths of what was written."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from vlmexp.screen import Screen

LABELS = {
    "vqa_accuracy": "VQA accuracy",
    "vqa_accuracy_2015": "VQA accuracy (2015)",
    "exact_match": "exact match",
    "anls": "ANLS",
    "relaxed_accuracy": "relaxed accuracy",
    "token_f1": "token F1",
    "multiple_choice_accuracy": "multiple choice",
    "gqa_accuracy": "GQA accuracy",
    "ai2d_accuracy": "AI2D accuracy",
    "scienceqa_accuracy": "ScienceQA accuracy",
    "seedbench_accuracy": "SEED-Bench accuracy",
    "realworldqa_accuracy": "RealWorldQA accuracy",
    "ocrbench_accuracy": "OCRBench accuracy",
    "mmmu_accuracy": "MMMU accuracy",
    "mmmu_unread": "no letter read",
    "mmstar_average": "MMStar average",
    "mmstar_accuracy": "MMStar accuracy",
    "mmbench_circular": "MMBench circular",
    "mmbench_accuracy": "MMBench single rows",
    "pope_accuracy": "POPE accuracy",
    "pope_precision": "POPE precision",
    "pope_recall": "POPE recall",
    "pope_f1_score": "POPE F1",
    "pope_yes_ratio": "yes among answers",
    "pope_yes_said": "yes among predictions",
    "mme_accuracy": "MME accuracy",
    "mme_perception_score": "MME perception",
    "mme_cognition_score": "MME cognition",
    "cider": "CIDEr",
    "coco_bleu1": "BLEU-1 (COCO)",
    "coco_bleu2": "BLEU-2 (COCO)",
    "coco_bleu3": "BLEU-3 (COCO)",
    "coco_bleu4": "BLEU-4 (COCO)",
    "coco_rougeL": "ROUGE-L (COCO)",
    "bleu": "BLEU",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "mean_rank": "mean rank",
}
LOSSES = ("eval_loss", "loss")
MEAN_RANK = "mean_rank"  # of a run among others, over the data sets of a suite
LOWEST_FIRST = (*LOSSES, MEAN_RANK)
UNBOUNDED = ("cider", "mme_perception_score", "mme_cognition_score", *LOWEST_FIRST)  # never in percent
NONE = "\N{EN DASH}"  # where there is no value
BLIND_LABELS = {"shuffle": "other images", "blank": "white images"}


def is_share(metric: str | None, values: Iterable[float | None]) -> bool:
    """Whether a metric is shown in percent: one of ours that is a share, or another with all its values in 0 to 1.

    Args:
        metric: a name, or NAME/METRIC of a data set of a suite.
        values: all that are shown together, None where there is none.
    """
    metric = (metric or "").rpartition("/")[2]
    if metric in LABELS or metric in UNBOUNDED:
        return metric not in UNBOUNDED
    return all(0 <= value <= 1 for value in values if value is not None)


def shown_score(value: float | None, share: bool) -> str:
    """A share in percent, anything else as it is."""
    return NONE if value is None else f"{100 * value:.2f} %" if share else f"{value:.4g}"


def told_answers(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What has to be known beside the scores: values that texts so short do not have, and answers that were cut.

    Args:
        columns: evaluation name -> the content of its *_evaluation.json.
    """
    undefined = dict.fromkeys(item for result in columns.values() for item in result.get("undefined", {}).items())
    told = [f"{LABELS.get(metric, metric)} {NONE}: {reason}" for metric, reason in undefined]
    for name, result in columns.items():
        told += official_in_words(name, result["metrics"])
        blind = result.get("blind") or {}
        for part, found in ((name, result), (BLIND_LABELS.get(blind.get("images", "")), blind)):
            if cut := found.get("cut"):
                limit = result["generation"]["max_new_tokens"]
                told.append(f"{part}: {cut:,} of {found['n']:,} answers were cut at {limit:,} tokens, without an end")
    return told


def official_in_words(name: str, metrics: Mapping[str, float | None]) -> list[str]:
    """By how much the official VQA accuracy of 2015 differs from today's, if it does."""
    now, then = metrics.get("vqa_accuracy"), metrics.get("vqa_accuracy_2015")
    if now is None or then is None or now == then:
        return []
    return [
        f"{name}: VQA accuracy is {100 * (now - then):+.2f} points from that of 2015, which normalises texts only "
        "where the annotators disagree"
    ]


def print_paths(paths: Mapping[str, Path]) -> None:
    """One line for each path, relative to the working directory where that is shorter."""
    width = max(map(len, paths))
    for name, path in paths.items():
        print(f"  {name:<{width}}  {_short(path)}")


def print_next(run: Path) -> None:
    """The command that asks what a run has trained."""
    print(f"Ask it: python -m vlmexp stage=predict run={shlex.quote(_short(run))}")


def print_scores(columns: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """A table with a column for each evaluation and a row for each metric; two evaluations give a column with the gain.

    Below the main metric stand its values for each value of the first metadata column, such as the answer type. An
    evaluation that was repeated with images that do not belong to the questions shows those values in a column more.
    Below the table stands what `told_answers` tells.

    Args:
        columns: evaluation name -> the content of its *_evaluation.json.
    """
    names, results = list(columns), list(columns.values())
    blind = results[-1].get("blind")
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("")
    for heading in ["n", *names]:
        table.add_column(heading, justify="right")
    if len(names) == 2:
        table.add_column("gain", justify="right", style="bold")
    else:
        table.add_column("95 % interval", justify="right", style="dim")
    if blind:
        heading = f"{BLIND_LABELS[blind['images']]} (n={blind['n']:,})"
        table.add_column(heading, justify="right", style="dim")
    for label, n, values, interval, blind_value, share in _score_rows(results, blind):
        cells = [shown_score(value, share) for value in values]
        if len(values) == 2:
            before, after = values
            gain = None if before is None or after is None else after - before
            cells.append(NONE if gain is None else f"{100 * gain:+.2f}" if share else f"{gain:+.4g}")
        else:
            cells.append(" - ".join(f"{100 * end:.2f}" if share else f"{end:.4g}" for end in interval))
        if blind:
            cells.append(shown_score(blind_value, share))
        table.add_row(Text(label), f"{n:,}", *cells)
    console = Screen()
    console.print(table)
    for line in told_answers(columns):
        console.print(f"  {line}", style="dim", markup=False, highlight=False, soft_wrap=True)
    for sentence in duplicates_in_words(columns):
        console.print(Text(sentence))


def duplicates_in_words(columns: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A sentence where questions are about what another split shows: how many, and the main metric without them.

    Args:
        columns: evaluation name -> the content of its *_evaluation.json.
    """
    found = {name: result for name, result in columns.items() if result.get("duplicates")}
    if not found:
        return []
    result = list(found.values())[-1]
    shared, main = result["duplicates"], result["main_metric"]
    others = " or ".join(f"the {other}{'' if other == 'training run' else ' split'}" for other in shared["of"])
    said = f"{shared['n']:,} of {result['n']:,} {result['split']} questions are about {shared['what']} of {others}"
    left = {name: each["duplicates"]["without"] for name, each in found.items()}
    if main is None or not all(left.values()):
        return [f"{said}."]
    values = {name: without["metrics"].get(main) for name, without in left.items()}
    share = is_share(main, values.values())
    named = len(values) > 1
    scores = ", ".join(f"{shown_score(value, share)}{f' ({name})' * named}" for name, value in values.items())
    return [f"{said}; without them {LABELS.get(main, main)} is {scores}."]


def _score_rows(
    results: list[Mapping[str, Any]], blind: Mapping[str, Any] | None
) -> Iterator[tuple[str, int, list[float | None], list[float], float | None, bool]]:
    """(label, n, value in each result, interval in the last one, value with blind images, whether they are shares)."""
    first = results[0]
    for metric in first["metrics"]:
        values = [result["metrics"].get(metric) for result in results]
        interval = results[-1].get("intervals", {}).get(metric, [])
        blind_value = (blind or {}).get("metrics", {}).get(metric)
        share = is_share(metric, [*values, blind_value])
        yield LABELS.get(metric, metric), first["n"], values, interval, blind_value, share
        if metric != first["main_metric"]:
            continue
        for column, groups in list(first["by"].items())[:1]:
            for group in groups:
                found = [result["by"].get(column, {}).get(group, {}) for result in [*results, blind or {"by": {}}]]
                *values, blind_value = [entry.get("metrics", {}).get(metric) for entry in found]
                interval = found[-2].get("intervals", {}).get(metric, [])
                yield f"  {group}", groups[group]["n"], values, interval, blind_value, share


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
