"""What a run prints at its end: a table and the paths of what was written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LABELS = {
    "vqa_accuracy": "VQA accuracy",
    "exact_match": "exact match",
    "anls": "ANLS",
    "relaxed_accuracy": "relaxed accuracy",
    "token_f1": "token F1",
    "multiple_choice_accuracy": "multiple choice",
    "cider": "CIDEr",
    "bleu": "BLEU",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}
BLIND_LABELS = {"shuffle": "other images", "blank": "white images"}


def print_paths(paths: Mapping[str, Path]) -> None:
    """One line for each path, relative to the working directory where that is shorter."""
    width = max(map(len, paths))
    for name, path in paths.items():
        print(f"  {name:<{width}}  {_short(path)}")


def print_scores(columns: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """A table with a column for each evaluation and a row for each metric; two evaluations give a column with the gain.

    Below the main metric stand its values for each value of the first metadata column, such as the answer type. An
    evaluation that was repeated with images that do not belong to the questions shows those values in a column more.

    Args:
        columns: evaluation name -> the content of its *_evaluation.json.
    """
    names, results = list(columns), list(columns.values())
    blind = results[-1].get("blind")
    table = Table(title=title, title_justify="left")
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
    for label, n, values, interval, blind_value in _score_rows(results, blind):
        cells = [_percent(value) for value in values]
        if len(values) == 2:
            before, after = values
            cells.append("-" if before is None or after is None else f"{100 * (after - before):+.2f}")
        else:
            cells.append(" - ".join(f"{100 * end:.2f}" for end in interval))
        if blind:
            cells.append(_percent(blind_value))
        table.add_row(label, f"{n:,}", *cells)
    Console().print(table)


def _score_rows(
    results: list[Mapping[str, Any]], blind: Mapping[str, Any] | None
) -> Iterator[tuple[str, int, list[float | None], list[float], float | None]]:
    """(label, n, value in each result, interval in the last one, value with blind images)."""
    first = results[0]
    for metric in first["metrics"]:
        values = [result["metrics"].get(metric) for result in results]
        interval = results[-1].get("intervals", {}).get(metric, [])
        yield LABELS.get(metric, metric), first["n"], values, interval, (blind or {}).get("metrics", {}).get(metric)
        if metric != first["main_metric"]:
            continue
        for column, groups in list(first["by"].items())[:1]:
            for group in groups:
                found = [result["by"].get(column, {}).get(group, {}) for result in [*results, blind or {"by": {}}]]
                *values, blind_value = [entry.get("metrics", {}).get(metric) for entry in found]
                interval = found[-2].get("intervals", {}).get(metric, [])
                yield f"  {group}", groups[group]["n"], values, interval, blind_value


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
