"""How benchmarks read and judge answers, and that nothing differs from the golden data but on purpose."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.__main__ import PURPOSES, run
from tests.golden.conventions import DIFFERS, OF, page
from vlmexp.collator.boxes import Notation, View
from vlmexp.errors import UserError
from vlmexp.evaluation.metrics import METRICS, VALUES, vqa_accuracy
from vlmexp.evaluation.row import Row
from vlmexp.evaluation.rules import boxes, letters, matching, yes_no
from vlmexp.evaluation.score import summarise
from vlmexp.main import CONFIG_DIR

GOLDEN = Path(__file__).parent.parent / "golden" / "benchmarks"


def test_the_golden_rows(capsys):
    assert run(GOLDEN) == []
    lines = capsys.readouterr().out.splitlines()
    assert "pope: prompts 40/40, scores 40/40, aggregates 5/5" in lines
    assert "reasoning_tags: texts 13/13" in lines
    assert len([line for line in lines if "prompts 40/40, scores 40/40" in line]) == 21
    told = " ".join(lines)
    assert all(name in told for name in PURPOSES)


def test_the_page_of_conventions_is_that_of_the_data_sets():
    """Made anew by `python -m tests.golden.conventions > conf/dataset/README.md`."""
    assert (CONFIG_DIR / "dataset" / "README.md").read_text(encoding="utf-8") == page()
    assert set(DIFFERS) <= set(OF)
    assert {reason for reasons in DIFFERS.values() for reason in reasons} == set(PURPOSES)


def test_what_differs_on_purpose():
    assert vqa_accuracy("Red.", ["red"]) == 1.0  # one answer
    assert vqa_accuracy("silver,olive", ["silver, olive"] * 10) == 0.0  # as in TextVQA, commas vanish: "silverolive"
    assert METRICS["relaxed_accuracy"]("\u22124.2", ["-4.2"]) == 1.0  # signs beyond ASCII
    assert METRICS["mmmu"]("B)", ["B"], Row(("B",), choices=("x", "y"))) == {"mmmu_accuracy": 0.0, "mmmu_unread": 1.0}


@pytest.mark.parametrize(
    ("response", "mmmu", "anywhere", "scienceqa", "seed"),
    [
        ("B", "B", "B", "B", "B"),
        ("b", "", "", "B", "B"),
        ("(B)", "B", "B", "", "("),
        ("B. two", "B", "B", "B", "B"),
        ("The answer is B", "B", "B", "", "T"),
        ("A or (B)", "B", "A", "", "A"),  # the first in brackets; the general reader looks at the beginning first
        ("Because", "", "B", "", "B"),
        ("", "", "", "", ""),
    ],
)
def test_a_letter_is_read_as_each_benchmark_reads_it(response, mmmu, anywhere, scienceqa, seed):
    assert letters.mmmu(response, ["one", "two", "three"]) == mmmu
    assert letters.anywhere(response) == anywhere
    assert letters.lone_or_dotted(response) == scienceqa
    assert letters.first_character(response) == seed


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("A", "A"),
        ("A cat sits on it", ""),  # an article among more than three words
        ("It is (C).", "C"),
        ("eat a banana", "B"),
        ("B or C", ""),
    ],
)
def test_mmbench_reads_without_a_judge(response, letter):
    assert letters.mmbench(response, {"A": "Climb", "B": "Eat a banana", "C": "Cross", "D": "Dive"}) == letter


@pytest.mark.parametrize(
    ("response", "word"), [("Yes.", "yes"), ("n", "no"), ("Not sure", "no"), ("Yesterday", "yes"), ("It is", "other")]
)
def test_mme_reads_four_characters(response, word):
    assert yes_no.mme(response) == word


def test_boxes_in_a_response():
    assert boxes.normalised_box("so [0.1, 0.2, 0.3, 0.4].") == (0.1, 0.2, 0.3, 0.4)
    assert boxes.normalised_box("[.1, .2, .3, .4]") == boxes.NO_BOX
    assert boxes.boxes_in('```json\n[{"bbox_2d": [1, 2, 3, 4]}]\n```') == [(1, 2, 3, 4)]
    assert boxes.boxes_in("[" * 2000) == []
    meant = (50.0, 50.0, 100.0, 100.0)
    assert boxes.best_box("[100, 100, 200, 200]", meant, 500, 500) == meant  # thousandths
    assert boxes.overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert boxes.overlap((2, 2, 0, 0), (0, 0, 2, 2)) == 0.0


def test_open_questions_and_text_in_images():
    assert matching.mmmu_open("so the result is 1,200.", ["1200"])
    assert not matching.mmmu_open("the cell undergoes meiosis", ["mitosis"])
    assert matching.gqa("T-shirt", ["tshirt"])
    assert not matching.gqa("white .", ["white"])
    assert matching.ocrbench("It says OPEN daily", ["open"], is_formula=False)
    assert not matching.ocrbench("a B", ["ab"], is_formula=True)


def test_pairs_and_circles():
    def row(answer: str, **metadata: object) -> Row:
        return Row((answer,), metadata=metadata)

    questions = [
        row("Yes", category="color", question_id="1"), row("No", category="color", question_id="1"),
        row("Yes", category="color", question_id="2"), row("No", category="color", question_id="2"),
        row("Yes", category="color", question_id="3"),
    ]  # fmt: skip
    _, summary = summarise(["yes", "no", "yes", "yes", "yes"], questions, ["mme"], ["category"])
    assert summary["metrics"]["mme_perception_score"] == 125.0  # accuracy 75 %, pairs 50 %; half a pair does not count
    assert summary["metrics"]["mme_cognition_score"] is None
    assert summary["undefined"] == {"mme_cognition_score": "no such rows"}
    assert summary["main_metric"] == "mme_perception_score"
    turned = [row("A", index=5, A="x", B="y"), row("B", index=1_000_005, A="y", B="x"), row("A", index=6, A="x", B="y")]
    _, summary = summarise(["A", "A", "A"], turned, ["mmbench"])
    assert summary["metrics"] == {"mmbench_accuracy": pytest.approx(2 / 3), "mmbench_circular": 0.5}
    with pytest.raises(UserError, match=r"mmbench needs the column index: name it in dataset\.metadata or"):
        summarise(["A"], [row("A")], ["mmbench"])


def test_a_list_of_values_is_in_each_of_its_groups():
    rows = [Row(("yes",), metadata={"kinds": ["table", "form"]}), Row(("no",), metadata={"kinds": ["form", "form"]})]
    _, summary = summarise(["yes", "yes"], rows, ["exact_match"], ["kinds"])
    assert {name: group["n"] for name, group in summary["by"]["kinds"].items()} == {"form": 2, "table": 1}


def test_the_names_of_values_are_those_that_are_given():
    row = Row(
        ("[0, 0, 1, 1]",), choices=("a", "b"),
        metadata={"image_width": 5, "image_height": 5, "category": "c", "question_id": 1, "index": 1, "l2_category": 1},
        boxes=((0.0, 0.0, 1.0, 1.0),), view=View(Notation(), (0.0, 0.0, 5.0, 5.0), (5, 5)),
    )  # fmt: skip
    for metric, names in VALUES.items():
        _, summary = summarise(["yes"], [row], [metric])
        assert set(summary["metrics"]) == set(names), metric


def seen(prediction: str, answers: list[str], row: Row) -> float:
    return float(row.metadata["kind"] == "easy" and row.question == "?" and prediction in row.choices)


def share(predictions: list[str], answers: list[list[str]], rows: list[Row]) -> dict[str, float | None]:
    return {"share": sum(row.metadata["kind"] == "easy" for row in rows) / len(rows), "none": None}


class Kept(list):
    """A metric that is an object, and one without a hash."""

    def __call__(self, prediction: str, answers: list[str], row: Row) -> float:
        return float(row.id == "7")


kept = Kept()


def test_a_metric_may_be_an_object_without_a_hash():
    _, summary = summarise(["a"], [Row(("a",), id="7")], ["tests.evaluation.test_rules.kept"])
    assert summary["metrics"] == {"kept": 1.0}


def test_ones_own_metrics_see_the_row():
    rows = [Row(("a",), question="?", choices=("a",), metadata={"kind": kind}) for kind in ("easy", "hard")]
    own = "tests.evaluation.test_rules"
    scores, summary = summarise(["a", "a"], rows, [f"{own}.seen", f"{own}.share"])
    assert [found["seen"] for found in scores] == [1.0, 0.0]
    assert summary["metrics"] == {"seen": 0.5, "share": 0.5, "none": None}


def test_several_boxes_are_paired_and_too_many_cost():
    """Halves of a box of 10 x 10 overlap with it to 0.5."""
    view = View(Notation(unit="thousandths"), (0.0, 0.0, 100.0, 100.0), (0, 0))
    row = Row(answers=("",), boxes=((0.0, 0.0, 10.0, 10.0), (50.0, 50.0, 60.0, 60.0)), view=view)

    def scored(prediction: str) -> tuple[float, float, float]:
        values = METRICS["box_iou"](prediction, row.answers, row)
        assert list(values) == VALUES["box_iou"]
        return values["box_IoU"], values["box_ACC@0.7"], values["box_unread"]

    assert scored("[500, 500, 600, 600], [0, 0, 100, 100]") == (1, 1, 0)
    assert scored("[0, 0, 100, 100]") == (0.5, 0.5, 0)
    assert scored("[0, 0, 50, 100], [0, 0, 100, 100]") == (0.5, 0.5, 0)  # one box is the partner of one
    assert scored("[0, 0, 50, 100], [500, 500, 600, 600]") == (0.75, 0.5, 0)
    assert scored("[0, 0, 100, 100], [500, 500, 600, 600], [1, 1, 2, 2], [3, 3, 4, 4]") == (0.5, 0.5, 0)
    assert scored("nowhere") == (0, 0, 1)
