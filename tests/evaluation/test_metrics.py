from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from vlmexp.errors import UserError
from vlmexp.evaluation.metrics import METRICS, bleu, corpus_bleu, exact_match, rouge, vqa_accuracy
from vlmexp.evaluation.modules import module
from vlmexp.evaluation.score import find_metric, summarise

GOLDEN = [json.loads(line) for line in (Path(__file__).parent.parent / "golden" / "vqa_accuracy.jsonl").open()]


def test_vqa_accuracy_is_the_official_one():
    assert len(GOLDEN) == 300
    for case in GOLDEN:
        assert vqa_accuracy(case["prediction"], case["answers"]) == pytest.approx(
            case["official_accuracy"], abs=1e-9
        ), case


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),  # leaving out one of the three: 2/3, seven times of the others: 1
        ("red", ["red"] + ["blue"] * 9, 0.3),
        ("Red.", ["red"] * 9 + ["blue"], 1.0),
        ("Red", ["red"] * 10, 0.0),  # the official code normalises only where annotators disagree
        ("two", ["2"] * 9 + ["3"], 1.0),
        ("a cat", ["the cat"] * 9 + ["dog"], 1.0),
        ("dont", ["don't"] * 9 + ["no"], 1.0),
        ("1,000", ["1000"] * 9 + ["2"], 1.0),
        ("", ["x"] * 10, 0.0),
        ("red", ["red"], 0.0),
        ("red", [], 0.0),
    ],
)
def test_vqa_accuracy_by_hand(prediction, answers, expected):
    assert vqa_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-12)


PREDICTIONS = ["a red circle on the left", "yes", "two dogs run", ""]
ANSWERS = [
    ["a red circle on the right", "the red circle is on the left"],
    ["yes"],
    ["two dogs are running", "dogs run"],
    ["no"],
]


def test_bleu_is_sacrebleu():
    for prediction, answers in zip(PREDICTIONS, ANSWERS, strict=True):
        assert bleu(prediction, answers) == sacrebleu.sentence_bleu(prediction, answers).score / 100
    padded = [[given[k] if k < len(given) else None for given in ANSWERS] for k in range(2)]
    assert corpus_bleu(PREDICTIONS, ANSWERS) == sacrebleu.corpus_bleu(PREDICTIONS, padded).score / 100


def test_rouge_is_rouge_score():
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    for prediction, answers in zip(PREDICTIONS, ANSWERS, strict=True):
        for name, value in rouge(prediction, answers).items():
            assert value == max(scorer.score(answer, prediction)[name].fmeasure for answer in answers)


def test_exact_match():
    assert exact_match("The Red.", ["blue", "red"]) == 1.0
    assert exact_match("reddish", ["red"]) == 0.0


@pytest.mark.parametrize("name", METRICS)
def test_the_evaluate_module_gives_the_same(name):
    found = module(name).compute(predictions=PREDICTIONS, references=ANSWERS)
    if name == "bleu":
        assert found == {"bleu": corpus_bleu(PREDICTIONS, ANSWERS)}
        return
    values = [METRICS[name](p, a) for p, a in zip(PREDICTIONS, ANSWERS, strict=True)]
    rows = [value if isinstance(value, dict) else {name: value} for value in values]
    assert found == {key: sum(row[key] for row in rows) / 4 for key in rows[0]}


def test_the_summary_counts_what_it_stands_on():
    metadata = [{"answer_type": t} for t in ("yes/no", "open", "open")]
    scores, summary = summarise(["yes", "red", "blue"], [["yes"], ["red"], ["red"]], metadata, ["vqa_accuracy"])
    assert summary["n"] == 3
    assert summary["metrics"]["vqa_accuracy"] == pytest.approx(2 / 3)
    assert summary["by"]["answer_type"]["open"] == {"n": 2, "metrics": {"vqa_accuracy": 0.5}}
    assert summary["by"]["answer_type"]["yes/no"] == {"n": 1, "metrics": {"vqa_accuracy": 1.0}}
    assert [row["vqa_accuracy"] for row in scores] == [1.0, 1.0, 0.0]


def test_a_metric_by_its_dotted_path():
    assert find_metric("tests.evaluation.test_metrics.length")("abc", []) == 3.0
    _, summary = summarise(["abc"], [["x"]], [{}], ["tests.evaluation.test_metrics.length"])
    assert summary["metrics"] == {"length": 3.0}
    with pytest.raises(UserError, match="did you mean 'rouge'"):
        find_metric("roge")
    with pytest.raises(UserError, match="cannot be imported"):
        find_metric("tests.nothing.here")


def length(prediction: str, answers: list[str]) -> float:
    return float(len(prediction))
