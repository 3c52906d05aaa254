from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from rich.cells import cell_len
from rich.console import Console

from tests.comparison.synthetic import make_run, prediction, write_evaluation
from tests.comparison.test_rows import rows_of
from vlmexp.comparison.rows import Score, group_seeds, sort_rows, varying
from vlmexp.comparison.sheets import Sheet, render
from vlmexp.comparison.table import duration, full_sheet, interval, print_leaderboard, short_sheet, shorten
from vlmexp.files import read_json, write_json
from vlmexp.report import NONE
from vlmexp.runs import NOT_IN_KEY


def printed(folder, width, metric="vqa_accuracy", seeds=False) -> list[str]:
    rows = rows_of(folder)
    options = varying([row.run.options for row in rows], NOT_IN_KEY)
    rows = sort_rows(group_seeds(rows, NOT_IN_KEY) if seeds else rows, metric)
    buffer = io.StringIO()
    print_leaderboard(Console(file=buffer, width=width, highlight=False), rows, options, metric, "title")
    return buffer.getvalue().splitlines()


def line_of(lines, name) -> list[str]:
    return next(line.split() for line in lines if line.startswith(name))


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_the_table_keeps_to_its_width(zoo, width):
    lines = printed(zoo, width)
    assert max(map(cell_len, lines)) <= width
    for name in ("0", "2", "3", "4", "alive", "broken", "lost", "older", "other", "preempted"):
        assert line_of(lines, name), name


def test_80_columns_hold_what_matters(zoo):
    lines = printed(zoo, 80)
    assert line_of(lines, "2 ") == ["2", "8", "0", "0.001", "90.00", "[70.0,", "100.0]", "10", "done", "100.5"]
    assert "95 % intervals: bootstrap over examples; no interval for 1 that stored none." in lines
    assert "OutOfMemoryError: 80 Gi…" in "\n".join(lines)
    assert "! other data: other" in lines
    assert "! n is 5, not 10: other" in lines
    assert "Not shown for want of width" in "\n".join(lines)


def test_cut_answers_and_missing_values_are_told(tmp_path):
    rows = [prediction(number, True) for number in range(10)]
    undefined = {"metrics": {"vqa_accuracy": 1.0, "bleu": None}, "undefined": {"bleu": "fewer than four words"}}
    for name, cut in (("a", 3), ("b", 0), ("c", None)):
        run = make_run(tmp_path / name, {"seed": ord(name)}, [])
        write_evaluation(run, "finetuned", rows, **({} if cut is None else {"cut": cut}), **undefined)
    lines = printed(tmp_path, 120)
    assert "Answers that were cut at evaluation.max_new_tokens, without an end: a (3 of 10)" in lines
    assert "cut %" in "\n".join(lines)
    assert "30.0" in line_of(lines, "a ")
    assert "3 of 10 answers cut" in "\n".join(lines)
    assert f"{NONE}: fewer than four words" in "\n".join(printed(tmp_path, 120, metric="bleu"))
    sheet = full_sheet(sort_rows(rows_of(tmp_path), "vqa_accuracy"), [], "vqa_accuracy", "title")
    assert {row["run"]: row["cut"] for row in sheet.rows} == {"a": 3, "b": 0, "c": None}
    assert "cut %" not in "\n".join(line for line in printed(tmp_path / "b", 120))
    seeds = group_seeds(rows_of(tmp_path), NOT_IN_KEY)
    assert [(row.cut, len(row.members)) for row in seeds] == [((3, 20), 3)]  # of the two that count them


def test_long_names_and_values_are_shortened(tmp_path):
    for name in ("a", "b"):
        make_run(tmp_path / (name * 80), {"model.id": f"some-organisation/{name * 90}"}, [True])
    lines = printed(tmp_path, 80)
    assert max(map(cell_len, lines)) <= 80
    assert "aaaaaaaaaaa…" in "\n".join(lines)


def test_seeds_are_shown_with_their_deviation(zoo):
    assert "55.00 ± 7.07 (2)" in "\n".join(printed(zoo, 80, seeds=True))


def test_options_that_change_together_give_way_to_others(tmp_path):
    for number in range(3):
        make_run(tmp_path / str(number), {"peft.r": number, "peft.lora_alpha": number, "seed": number % 2}, [True])
    heading = printed(tmp_path, 56)[1]
    assert heading.split()[:3] == ["run", "lora_alpha", "seed"]
    assert "r" not in heading.split()


def with_metric(directory: Path, metric: str, value: float, base: float) -> None:
    """A run whose main metric is another one."""
    make_run(directory, {"peft.r": int(directory.name)}, [True], base=[False])
    for stem, found in (("finetuned", value), ("base", base)):
        path = directory / "evaluation" / f"{stem}_vlm_model_evaluation.json"
        write_json(path, read_json(path) | {"metrics": {metric: found}, "intervals": {}, "main_metric": metric})


@pytest.mark.parametrize("metric", ["cider", "words"])
def test_a_column_has_one_scale(tmp_path, metric):
    for number, value in enumerate((1.31, 0.95, 0.5)):
        with_metric(tmp_path / str(number), metric, value, base=0.2)
    lines = printed(tmp_path, 80, metric)
    assert "%" not in lines[1].replace("[95 %]", "")
    assert [line_of(lines, f"{n} ")[2:4] for n in range(3)] == [["1.31", "+1.11"], ["0.95", "+0.75"], ["0.5", "+0.3"]]


def test_text_from_files_is_no_markup_and_breaks_no_line(tmp_path):
    make_run(tmp_path / "two\nlines", {"peft.r": 1}, [True])
    with_metric(tmp_path / "3", "[red]m", 0.5, base=0.2)
    record = tmp_path / "3" / "run.json"
    write_json(record, read_json(record) | {"status": "[/b]weird"})
    buffer, rows = io.StringIO(), rows_of(tmp_path)
    print_leaderboard(Console(file=buffer, width=120, highlight=False), rows, ["peft.r"], "[red]m", "1 [/b]weird")
    lines = buffer.getvalue().splitlines()
    assert lines[0].rstrip() == "1 [/b]weird"
    assert "[red]m %" in lines[1]
    assert line_of(lines, "3 ")[1:3] == ["3", "50.00"]
    assert "[/b]weird" in line_of(lines, "3 ")
    assert line_of(lines, "two lines")[2] == "1"


def test_cells():
    assert interval(Score(0.815, 200, 0.755, 0.863), is_share=True) == "81.50 [75.5, 86.3]"
    assert interval(Score(0.815, 200, seeds=2, deviation=0.0071), is_share=True) == "81.50 ± 0.71 (2)"
    assert interval(Score(0.61234), is_share=False) == "0.6123"
    assert interval(Score(12.5, 10), is_share=False) == "12.5"
    assert [duration(s) for s in (48, 750, 11_100)] == ["48 s", "12:30 min", "3:05 h"]
    assert shorten("abcdefghij", 5) == "ab…ij"
    assert shorten("abcdefghij", 5, at_end=True) == "abcd…"
    assert cell_len(shorten("漢字" * 20, 9)) <= 9


def test_csv_has_everything_in_full(zoo):
    rows = sort_rows(rows_of(zoo), "vqa_accuracy")
    text = render(full_sheet(rows, ["peft.r", "seed"], "vqa_accuracy", "title"), "csv")
    found = {row["run"]: row for row in csv.DictReader(io.StringIO(text))}
    assert len(found) == 12
    assert (found["2"]["peft.r"], found["2"]["vqa_accuracy"], found["2"]["n"], found["2"]["base"]) == (
        "8",
        "0.9",
        "10",
        "0.0",
    )
    assert found["2"]["directory"].endswith("10-00-00-000000/2")
    assert found["3"]["note"] == "OutOfMemoryError: 80 GiB is not enough"
    assert found["4"]["vqa_accuracy"] == ""


def test_json_is_for_machines(zoo):
    rows = sort_rows(rows_of(zoo), "vqa_accuracy")
    content = json.loads(render(full_sheet(rows, ["peft.r"], "vqa_accuracy", "title"), "json"))
    assert content["metric"] == "vqa_accuracy"
    assert [row["vqa_accuracy"] for row in content["rows"]][:3] == [1.0, 1.0, 0.9]


def test_markdown_is_one_line_a_run(zoo):
    rows = sort_rows(rows_of(zoo), "vqa_accuracy")
    text = render(short_sheet(rows, ["peft.r"], "vqa_accuracy", "title"), "md")
    assert "| 2 | 8 | 90.00 [70.0, 100.0] |" in text
    assert len([line for line in text.splitlines() if line.startswith("|")]) == 14
    assert text.endswith("\n- 95 % intervals: bootstrap over examples; no interval for 1 that stored none.\n")


def test_markdown_cells_cannot_break_out():
    sheet = Sheet("t", [{"a": "x|y\n<script>", "b": None}], {"k": 0.123456789})
    assert render(sheet, "md") == "## t\n\n- k: 0.123457\n\n| a | b |\n| --- | --- |\n| x\\|y &lt;script> |  |\n"
