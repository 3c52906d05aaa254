from __future__ import annotations

import pytest

from tests.comparison.synthetic import make_run, prediction, write_evaluation
from vlmexp.comparison.paired import pair, paired_sheet, read_predictions, verdict
from vlmexp.errors import UserError
from vlmexp.files import write_jsonl


def answered(*right: bool, **values):
    return {row["id"]: row for row in (prediction(number, hit, **values) for number, hit in enumerate(right))}


@pytest.mark.parametrize("part", [{"scores": 3}, {"scores": {"vqa_accuracy": None}}, {"answers": 1}, {"images": "x"}])
def test_damaged_predictions_are_refused(part, tmp_path):
    write_jsonl(tmp_path / "x.jsonl", [prediction(0, True), prediction(1, True, **part)])
    with pytest.raises(UserError, match=r"x\.jsonl cannot be read as predictions: .*test-1"):
        read_predictions(tmp_path / "x.jsonl")


def test_gains_losses_and_ties_by_hand():
    first = answered(*[False] * 6, *[True] * 4)
    second = answered(*[True] * 5, *[False] * 2, *[True] * 3)
    found = pair(first, second, "vqa_accuracy")
    assert (found.n, found.gains, found.losses, found.ties) == (10, 5, 1, 4)
    assert (found.first, found.second) == (0.4, 0.8)
    assert found.difference == pytest.approx(0.4)
    assert found.p == 0.21875  # 2 (1 + 6) / 2^6
    assert (found.low, found.high) == (0.0, 0.8)
    assert [b["id"] for _, b in found.flipped] == ["test-0", "test-1", "test-2", "test-3", "test-4", "test-6"]
    assert found.alone == found.unlike == 0


def test_scores_between_0_and_1_gain_too():
    first = answered(True, scores={"vqa_accuracy": 0.3})
    second = answered(True, scores={"vqa_accuracy": 0.6})
    assert pair(first, second, "vqa_accuracy").gains == 1


def test_only_equal_questions_are_compared():
    first, second = answered(True, True, True), answered(True, False, False, True)
    second["test-1"] = second["test-1"] | {"question": "another?"}
    found = pair(first, second, "vqa_accuracy")
    assert (found.n, found.unlike, found.alone) == (2, 1, 1)
    notes = paired_sheet(found, ("a", "b"), 5).notes
    assert notes[0].startswith("1 examples are in one of the two only")
    assert notes[1].startswith("1 examples share an id but not question and answers")


def test_what_cannot_be_compared_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no example in common"):
        pair(answered(True), {"x": prediction(0, True)}, "vqa_accuracy")
    with pytest.raises(UserError, match="the same ids but other questions"):
        pair(answered(True), answered(True, answers=["circle"]), "vqa_accuracy")
    with pytest.raises(UserError, match=r"=cider has no value for single examples\. These have one: exact_match, vqa"):
        pair(answered(True), answered(True), "cider")
    with pytest.raises(UserError, match="evaluate that run first"):
        read_predictions(tmp_path / "none.jsonl")
    (tmp_path / "odd.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="cannot be read as predictions"):
        read_predictions(tmp_path / "odd.jsonl")


def test_the_sheet_shows_the_first_flips_of_both_kinds():
    first = answered(*[False] * 4, *[True] * 3)
    second = answered(*[True] * 4, *[False] * 3)
    sheet = paired_sheet(pair(first, second, "vqa_accuracy"), ("a", "b"), limit=2)
    assert [(row["flip"], row["id"], row["first"], row["second"]) for row in sheet.rows] == [
        ("gain", "test-0", "circle", "square"),
        ("gain", "test-1", "circle", "square"),
        ("loss", "test-4", "square", "circle"),
        ("loss", "test-5", "square", "circle"),
    ]
    assert sheet.notes == [
        "2 of 4 gains are shown; compare.examples=N shows more.",
        "2 of 3 losses are shown; compare.examples=N shows more.",
    ]


def test_the_verdict():
    found = pair(answered(*[False] * 10), answered(*[True] * 10), "vqa_accuracy")
    assert verdict(found) == (
        "+100.00 points [+100.00, +100.00]: 10 gained, 0 lost, 0 alike; p = 0.00195, luck alone hardly explains it."
    )


def test_the_verdict_of_what_is_no_share():
    rows = [answered(*[True] * 10, scores={"words": words}) for words in (1.5, 4.0)]
    assert verdict(pair(*rows, "words")).startswith("+2.50 [+2.50, +2.50]: 10 gained")


def test_predictions_are_read_by_id(tmp_path):
    run = make_run(tmp_path / "run", {}, [True, False])
    rows = read_predictions(run / "evaluation" / "finetuned_vlm_model_predictions.jsonl")
    assert {name: row["prediction"] for name, row in rows.items()} == {"test-0": "square", "test-1": "circle"}


def test_other_ends_of_lines_are_part_of_a_text(tmp_path):
    run = make_run(tmp_path / "run", {}, [])
    text = "one\u2028two\x85three\x0cfour\r"
    write_evaluation(run, "finetuned", [prediction(0, True, question=text)])
    assert read_predictions(run / "evaluation" / "finetuned_vlm_model_predictions.jsonl")["test-0"]["question"] == text
