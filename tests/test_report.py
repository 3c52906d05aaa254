from __future__ import annotations

import pytest

from vlmexp.report import NONE, is_share, print_scores


def result(metrics: dict[str, float | None], **values) -> dict:
    intervals = {name: [value, value] for name, value in metrics.items() if value is not None}
    return {"n": 4, "metrics": metrics, "intervals": intervals, "main_metric": next(iter(metrics)), "by": {}} | values


def lines(capsys) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines() if "│" in line]


@pytest.mark.parametrize(
    ("metric", "values", "share"),
    [
        ("vqa_accuracy", [0.5, None], True),
        ("cider", [0.95, 0.5], False),
        ("eval_loss", [0.3], False),
        ("mine", [0.0, 1.0, None], True),
        ("mine", [0.5, 1.31], False),
        ("mine", [-0.5], False),
    ],
)
def test_a_metric_is_a_share_or_not_whatever_the_run(metric, values, share):
    assert is_share(metric, values) == share


def test_a_row_has_one_scale(capsys):
    base = result({"cider": 0.5, "words": 0.75, "vqa_accuracy": 0.25})
    tuned = result({"cider": 1.31, "words": 3.5, "vqa_accuracy": 0.5})
    print_scores({"base": base, "fine-tuned": tuned}, "title")
    assert lines(capsys) == [
        ["", "CIDEr", "4", "0.5", "1.31", "+0.81", ""],
        ["", "words", "4", "0.75", "3.5", "+2.75", ""],
        ["", "VQA accuracy", "4", "25.00 %", "50.00 %", "+25.00", ""],
    ]
    print_scores({"base": tuned}, "title")
    assert lines(capsys)[1:] == [
        ["", "words", "4", "3.5", "3.5 - 3.5", ""],
        ["", "VQA accuracy", "4", "50.00 %", "50.00 - 50.00", ""],
    ]


def test_what_has_no_value_and_what_was_cut_is_told(capsys):
    short = {"undefined": {"bleu": "fewer than four words", "rouge2": "fewer than two words"}}
    metrics = {"exact_match": 0.25, "bleu": None, "rouge2": None}
    limit = {"generation": {"max_new_tokens": 16}}
    base = result(metrics, cut=4, intervals={}, **short, **limit)
    blind = result(metrics, images="shuffle", cut=1, **short)
    tuned = result(metrics | {"exact_match": 0.5}, cut=0, blind=blind, **short, **limit)
    print_scores({"base": base, "fine-tuned": tuned}, "title")
    said = capsys.readouterr().out
    assert [[cell.strip() for cell in line.split("│")][1:-1] for line in said.splitlines() if "│" in line] == [
        ["exact match", "4", "25.00 %", "50.00 %", "+25.00", "25.00 %"],
        ["BLEU", "4", NONE, NONE, NONE, NONE],
        ["ROUGE-2", "4", NONE, NONE, NONE, NONE],
    ]
    assert said.splitlines()[-4:] == [
        f"  BLEU {NONE}: fewer than four words",
        f"  ROUGE-2 {NONE}: fewer than two words",
        "  base: 4 of 4 answers were cut at 16 tokens, without an end",
        "  other images: 1 of 4 answers were cut at 16 tokens, without an end",
    ]
    print_scores({"base": base}, "title")
    assert f"  BLEU {NONE}: fewer than four words" in capsys.readouterr().out


def test_text_from_the_data_is_no_markup(capsys):
    groups = {"kind": {"[/b]": {"n": 3, "metrics": {"[red]m": 1.0}}, "[red]x": {"n": 1, "metrics": {"[red]m": 0.0}}}}
    print_scores({"base": result({"[red]m": 0.75}, by=groups)}, "[/b] title")
    said = lines(capsys)
    assert [row[1:4] for row in said] == [
        ["[red]m", "4", "75.00 %"],
        ["[/b]", "3", "100.00 %"],
        ["[red]x", "1", "0.00 %"],
    ]
