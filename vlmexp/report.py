"""What a run prints at its end: a table and the paths of what was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

LABELS = {
    "vqa_accuracy": "VQA accuracy",
    "exact_match": "exact match",
    "bleu": "BLEU",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}


def print_paths(paths: Mapping[str, Path]) -> None:
    """One line for each path, relative to the working directory where that is shorter."""
    width = max(map(len, paths))
    for name, path in paths.items():
        print(f"  {name:<{width}}  {_short(path)}")


def print_scores(columns: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """A table with a column for each evaluation and a row for each metric; two evaluations give a column with the gain.

    Below the main metric stand its values for each value of the first metadata column, such as the answer type.

    Args:
        columns: evaluation name -> the content of its *_evaluation.json.
    """
    names = list(columns)
    table = Table(title=title, title_justify="left")
    table.add_column("")
    table.add_column("n", justify="right")
    for name in names:
        table.add_column(name, justify="right")
    if len(names) == 2:
        table.add_column("gain", justify="right", style="bold")
    first = columns[names[0]]
    rows: list[tuple[str, int, list[float | None]]] = []
    for metric in first["metrics"]:
        rows.append((LABELS.get(metric, metric), first["n"], [c["metrics"].get(metric) for c in columns.values()]))
        if metric == first["main_metric"]:
            for column, groups in list(first["by"].items())[:1]:
                for group, scores in groups.items():
                    values = [
                        c["by"].get(column, {}).get(group, {}).get("metrics", {}).get(metric) for c in columns.values()
                    ]
                    rows.append((f"  {group}", scores["n"], values))
    for label, n, values in rows:
        cells = ["-" if value is None else f"{100 * value:.2f} %" for value in values]
        if len(values) == 2:
            before, after = values
            cells.append("-" if before is None or after is None else f"{100 * (after - before):+.2f}")
        table.add_row(label, f"{n:,}", *cells)
    Console().print(table)


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
