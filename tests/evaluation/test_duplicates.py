"""Scores with and without the questions about what another split shows."""

from __future__ import annotations

import json

import pytest

from vlmexp.data.prepare import Prepared
from vlmexp.evaluation.duplicates import score_without_duplicates
from vlmexp.evaluation.row import Row
from vlmexp.report import duplicates_in_words, print_scores

METRICS = ["exact_match", "bleu"]


@pytest.fixture
def prepared(tmp_path) -> Prepared:
    """Of ten test rows the first two show what train shows, the second and third what validation shows."""
    shared = [("test-0", "train"), ("test-1", "train"), ("test-1", "validation"), ("test-2", "validation")]
    lines = [{"split": "test", "id": row, "other_split": other} for row, other in shared]
    lines.append({"split": "validation", "id": "test-9", "other_split": "train"})
    (tmp_path / "duplicates.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return Prepared(tmp_path, {"request": {"columns": {"image": "image", "question": "q"}}})


def rows(count: int = 10) -> list[Row]:
    return [Row(("yes",), f"test-{number}", "q?", shared="a.png") for number in range(count)]


def result(duplicates: dict | None, value: float = 0.5) -> dict:
    return {
        "n": 10, "split": "test", "main_metric": "exact_match", "metrics": {"exact_match": value}, "by": {},
        "intervals": {"exact_match": [0.1, 0.9]}, **({"duplicates": duplicates} if duplicates else {}),
    }  # fmt: skip


def test_scores_without_duplicates(prepared):
    """Five of ten are right, the three shared ones among them: two of seven are left."""
    found = score_without_duplicates(prepared, "test", rows(), ["yes"] * 5 + ["no"] * 5, METRICS)
    assert found is not None
    assert (found["n"], found["of"], found["what"]) == (3, {"train": 2, "validation": 2}, "pictures")
    assert found["without"]["n"] == 7
    assert found["without"]["metrics"]["exact_match"] == pytest.approx(2 / 7)
    assert set(found["without"]["metrics"]) == {"exact_match", "bleu"}
    assert len(found["without"]["intervals"]["exact_match"]) == 2


def test_only_the_rows_that_are_asked_count(prepared):
    assert score_without_duplicates(prepared, "test", rows()[4:], ["yes"] * 6, METRICS) is None
    assert score_without_duplicates(prepared, "train", rows(), ["yes"] * 10, METRICS) is None
    found = score_without_duplicates(prepared, "test", rows(2), ["yes"] * 2, METRICS)
    assert found == {"n": 2, "of": {"train": 2, "validation": 1}, "what": "pictures", "without": None}


def test_rows_of_a_training_on_other_data_count_too(prepared):
    found = score_without_duplicates(prepared, "test", rows(), ["yes"] * 9 + ["no"], METRICS, ["test-9", "test-8"])
    assert found is not None
    assert found["of"] == {"training run": 2, "train": 2, "validation": 2}
    assert found["without"]["metrics"]["exact_match"] == 1.0


def test_a_report_says_it():
    shared = {"n": 3, "of": {"train": 2}, "what": "pictures", "without": {"n": 7, "metrics": {"exact_match": 0.612}}}
    said = "3 of 10 test questions are about pictures of the train split"
    assert duplicates_in_words({"base": result(shared)}) == [f"{said}; without them exact match is 61.20 %."]
    both = {
        "base": result(shared | {"without": {"n": 7, "metrics": {"exact_match": 0.0}}}),
        "fine-tuned": result(shared),
    }
    assert duplicates_in_words(both) == [f"{said}; without them exact match is 0.00 % (base), 61.20 % (fine-tuned)."]
    assert duplicates_in_words({"base": result(shared | {"n": 10, "without": None})}) == [
        "10 of 10 test questions are about pictures of the train split."
    ]
    assert duplicates_in_words({"base": result(None)}) == []


def test_a_report_prints_it_below_the_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    shared = {"n": 3, "of": {"training run": 1, "train": 2}, "what": "videos", "without": None}
    print_scores({"base": result(shared)}, "title")
    assert capsys.readouterr().out.endswith("videos of the training run or the train split.\n")
