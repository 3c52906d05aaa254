"""stage=compare: which run is better, whether that is real, and why. It reads run directories and opens none."""

from __future__ import annotations

import io
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from vlmexp import trust
from vlmexp.comparison.diff import diff_sheet
from vlmexp.comparison.failures import failures_sheet
from vlmexp.comparison.reading import RunFiles, expand, find_run, find_runs, get
from vlmexp.comparison.rows import (
    Row,
    cut_of,
    group_seeds,
    main_metric,
    make_rows,
    mark_differences,
    rank_rows,
    sort_rows,
    varying,
)  # fmt: skip
from vlmexp.comparison.sheets import Sheet, render
from vlmexp.comparison.table import full_sheet, print_leaderboard, short_sheet
from vlmexp.comparison.terminal import print_blocks, print_sheet
from vlmexp.confidential import redacted
from vlmexp.config import Compare, Config
from vlmexp.errors import UserError
from vlmexp.files import write_text
from vlmexp.report import print_paths
from vlmexp.runs import LOST_AFTER_S, NOT_IN_KEY
from vlmexp.screen import Screen

LOG_LINES = 6


def compare(config: Config) -> None:
    """Read the runs and print what `compare.*` asks for; with `compare.html` also write the report."""
    options = config.compare
    if config.run is not None:
        raise UserError(f"stage=compare has no use for run={config.run}: name runs with compare.runs=[{config.run}].")
    folders = expand(options.runs, [Path(config.paths.outputs), Path(config.paths.multirun)])
    runs = find_runs(folders, LOST_AFTER_S)
    if options.diff:
        first, second = (find_run(text, runs, LOST_AFTER_S, "compare.diff") for text in options.diff)
        sheet = diff_sheet(first, second, NOT_IN_KEY)
        emit(options, sheet, lambda console: print_sheet(console, sheet))
        return
    if options.paired:
        show_pairing(config, [find_run(text, runs, LOST_AFTER_S, "compare.paired") for text in options.paired])
        return
    if not runs:
        raise UserError(
            f"There are no runs under {' and '.join(map(str, folders)) or config.paths.outputs}: "
            "start one, or name their folders with compare.runs=[DIR,...]."
        )
    finetuned = any("finetuned" in each for run in runs for each in (run.evaluations, *run.suite.values()))
    evaluation = options.evaluation or ("finetuned" if finetuned else "base")
    rows = make_rows(runs, evaluation)
    mark_differences(rows, evaluation)
    if options.failed:
        sheet = failures_sheet(rows, LOG_LINES)
        emit(options, sheet, lambda console: print_blocks(console, sheet))
        return
    metric = main_metric(rows, options.metric, evaluation)
    if options.best:
        print_best(rows, metric, options.group_seeds)
        return
    show_leaderboard(config, rows, metric, evaluation)
    if options.html is not None:
        write_report(config, rows, metric, evaluation)


def show_leaderboard(config: Config, rows: Sequence[Row], metric: str | None, evaluation: str) -> None:
    """The table of all runs, the best first."""
    grouped = group_seeds(rows, NOT_IN_KEY) if config.compare.group_seeds else rows
    rank_rows(grouped, evaluation)
    shown = sort_rows(grouped, metric)
    keys = varying([row.run.options for row in rows], NOT_IN_KEY)
    count = Counter(row.run.status for row in rows)
    states = ", ".join(f"{number} {status}" for status, number in count.most_common())
    title = f"{len(rows):,} {'run' if len(rows) == 1 else 'runs'}: {states} ({evaluation} evaluation)"
    make_sheet = short_sheet if config.compare.format == "md" else full_sheet
    sheet = make_sheet(shown, keys, metric, title)
    emit(config.compare, sheet, lambda console: print_leaderboard(console, shown, keys, metric, title))


def print_best(rows: Sequence[Row], metric: str | None, by_seeds: bool) -> None:
    """The best finished run's directory and, on a second line, the command that made it.

    Args:
        by_seeds: choose the options by their mean over seeds, then the best run with these options.
    """
    finished = [row for row in rows if row.run.status == "done" and metric in row.scores]
    if not finished:
        raise UserError("compare.best: no run is finished and evaluated.")
    best = sort_rows(group_seeds(finished, NOT_IN_KEY) if by_seeds else finished, metric)[0]
    best = sort_rows(best.members or [best], metric)[0]
    for mark in dict.fromkeys(mark for row in finished for mark in row.marks):
        print(f"vlmexp: Not all runs were evaluated alike: {mark}.", file=sys.stderr)
    command = [str(text) for text in best.run.get("overrides") or []]
    if asked := trust.untrusted(command, Path(), other_files=True):
        print(f"vlmexp: The command below can run code of whoever made this run: {'; '.join(asked)}.", file=sys.stderr)
    print(best.run.directory)
    print(shlex.join(["python", "-m", "vlmexp", *command]))


def show_pairing(config: Config, runs: Sequence[RunFiles]) -> None:
    """Two runs on the same examples, or one run before and after its fine-tuning."""
    # Here, as in write_report, so that the table of runs does without NumPy.
    from vlmexp.comparison.paired import pair, paired_sheet, read_predictions, verdict

    options = config.compare
    if len(runs) == 2:
        names, evaluations = (str(runs[0].directory), str(runs[1].directory)), [options.evaluation or "finetuned"] * 2
    else:
        names, evaluations, runs = ("base", "fine-tuned"), ["base", "finetuned"], [runs[0], runs[0]]
    member, _, wanted = (options.metric or "").rpartition("/")
    results = [run.evaluated(member).get(evaluation) for run, evaluation in zip(runs, evaluations, strict=True)]
    metric = wanted or get(results[1], "main_metric")
    first, second = (
        read_predictions(run.predictions(evaluation, member)) for run, evaluation in zip(runs, evaluations, strict=True)
    )
    pairing = pair(first, second, str(metric), config.seed)
    sheet = paired_sheet(pairing, names, options.examples)
    if get(results[0], "data_fingerprint") != get(results[1], "data_fingerprint"):
        sheet.notes.append("Their data have different fingerprints; only equal questions are compared.")
    for name, (cut, n) in zip(names, map(cut_of, results), strict=True):
        if cut:
            sheet.notes.append(
                f"{name}: {cut:,} of {n:,} answers were cut at the limit of their length, without an end."
            )

    def show(console: Console) -> None:
        print_sheet(console, sheet)
        console.print(verdict(pairing), style="bold", markup=False)

    emit(options, sheet, show)


def emit(options: Compare, sheet: Sheet, show: Callable[[Console], None]) -> None:
    """To the terminal, or to a file whose path is printed."""
    if options.format == "table" and options.output is None:
        show(Screen(highlight=False))
        return
    if options.format == "table":
        buffer = io.StringIO()
        show(Screen(file=buffer, highlight=False, width=160))
        text = buffer.getvalue()
    else:
        text = render(sheet, options.format)
    if options.output is None:
        print(text, end="")
        return
    write(options.format, "compare.output", options.output, text)


def write_report(config: Config, rows: Sequence[Row], metric: str | None, evaluation: str) -> None:
    """The HTML report; its path is printed."""
    from vlmexp.comparison.report import build_report

    text = build_report(
        sort_rows(rows, metric), metric, evaluation, ignored=NOT_IN_KEY, data_dir=Path(config.paths.data).expanduser(),
        max_examples=config.compare.report_examples, seed=config.seed,
    )  # fmt: skip
    write("report", "compare.html", str(config.compare.html), text)


def write(what: str, option: str, path: str, text: str) -> None:
    """Write a file and print where it is.

    Raises:
        UserError: it cannot be written there.
    """
    try:
        write_text(Path(path).expanduser(), redacted(text))
    except OSError as error:
        raise UserError(f"{option}={path} cannot be written: {error.strerror}; name another file.") from None
    print_paths({what: Path(path).expanduser()})
