from __future__ import annotations

import json
from pathlib import Path

import pytest
import sacrebleu
from rouge_score.rouge_scorer import RougeScorer

from vlmexp.errors import UserError
from vlmexp.evaluation.cider import cider
from vlmexp.evaluation.intervals import bootstrap_interval
from vlmexp.evaluation.lookup import corpus_metric, example_metric, metric_names
from vlmexp.evaluation.metrics import (
    METRICS,
    VALUES,
    anls,
    bleu,
    corpus_bleu,
    corpus_cider,
    exact_match,
    multiple_choice_accuracy,
    relaxed_accuracy,
    rouge,
    token_f1,
    vqa_accuracy,
    vqa_accuracy_2015,
)  # fmt: skip
from vlmexp.evaluation.modules import module
from vlmexp.evaluation.row import Row
from vlmexp.evaluation.score import score_examples, summarise

FOLDER = Path(__file__).parent.parent / "golden"
GOLDEN = [
    json.loads(line)
    for path in (FOLDER / "vqa_accuracy.jsonl", FOLDER / "benchmarks" / "vqa_rules_extra.jsonl")
    for line in path.open()
]


def rows(answers, metadata=None, ids=None):
    """Rows of accepted answers, with what is known of each beside them."""
    known = zip(answers, metadata or [{}] * len(answers), ids or map(str, range(len(answers))), strict=True)
    return [Row(answers=tuple(given), metadata=data, id=name) for given, data, name in known]


def test_vqa_accuracy_is_the_official_one():
    assert len(GOLDEN) == 420
    for case in GOLDEN:
        of = case["prediction"], case["answers"]
        assert vqa_accuracy_2015(*of) == pytest.approx(case["official_accuracy"], abs=1e-9), case
        if len(case["answers"]) > 1:  # a single answer counts as that of all annotators
            assert vqa_accuracy(*of) == pytest.approx(case["evalai"], abs=1e-9), case


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("red", ["red"] * 10, 1.0),
        ("red", ["red"] * 3 + ["blue"] * 7, 0.9),  # leaving out one of the three: 2/3, seven times of the others: 1
        ("red", ["red"] + ["blue"] * 9, 0.3),
        ("Red.", ["red"] * 9 + ["blue"], 1.0),
        ("Red", ["red"] * 10, 1.0),
        ("two", ["2"] * 9 + ["3"], 1.0),
        ("a cat", ["the cat"] * 9 + ["dog"], 1.0),
        ("dont", ["don't"] * 9 + ["no"], 1.0),
        ("1,000", ["1000"] * 9 + ["2"], 1.0),
        ("", ["x"] * 10, 0.0),
        ("Red.", ["red"], 1.0),  # a single answer counts as that of all ten
        ("red", ["blue"], 0.0),
        ("red", ["red"] * 2, 1 / 3),
        ("red", [], 0.0),
    ],
)
def test_vqa_accuracy_by_hand(prediction, answers, expected):
    assert vqa_accuracy(prediction, answers) == pytest.approx(expected, abs=1e-12)


def test_the_official_code_of_2015_normalises_only_where_annotators_disagree():
    assert vqa_accuracy_2015("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy_2015("Yes", ["yes"] * 9 + ["no"]) == pytest.approx(1.0)
    assert vqa_accuracy_2015("yes", ["yes"]) == 0.0  # nothing is left when it is left out


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


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("10 Main Street", ["10 main  street"], 1.0),  # case and runs of white space are alike
        ("cat", ["cut"], 1 - 1 / 3),
        ("abcd", ["abxy"], 0.5),  # the script keeps what is not below the threshold
        ("abc", ["xyz", "abd"], 1 - 1 / 3),
        ("abc", ["axy"], 0.0),
        ("", ["abc"], 0.0),
        ("", [""], 1.0),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("x", [], 0.0),
    ],
)
def test_anls_by_hand(prediction, answers, expected):
    assert anls(prediction, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("105", ["100"], 1.0),
        ("105.1", ["100"], 0.0),
        ("95", ["100"], 1.0),
        ("-95", ["-100"], 1.0),
        ("50%", ["0.51"], 1.0),
        ("12", ["12%"], 0.0),
        ("0", ["0"], 1.0),
        ("0.0", ["0"], 0.0),  # a target of 0 is compared as text
        ("Blue", ["blue"], 1.0),
        ("1,000", ["1000"], 0.0),  # no number to Python, as in the official code
        ("7", ["3", "7"], 1.0),
        ("7", [], 0.0),
    ],
)
def test_relaxed_accuracy_by_hand(prediction, answers, expected):
    assert relaxed_accuracy(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("the red circle", ["a red circle."], 1.0),
        ("red", ["red circle"], 2 / 3),
        ("red red circle", ["red square", "red circle"], 0.8),
        ("green", ["red"], 0.0),
        ("the", [""], 1.0),
        ("red", [], 0.0),
    ],
)
def test_token_f1_by_hand(prediction, answers, expected):
    assert token_f1(prediction, answers) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("B", ["B"], 1.0),
        ("(b)", ["B"], 1.0),
        ("B. the red one", ["B"], 1.0),
        ("The answer is B.", ["B"], 1.0),
        ("Answer: C", ["C"], 1.0),
        ("red.", ["Red"], 1.0),
        ("b) red", ["red"], 1.0),
        ("b) red", ["blue"], 0.0),
        ("red", ["B. red"], 1.0),
        ("a) red", ["B. red"], 0.0),  # the letters decide
        ("The answer is B because it is red", ["B"], 1.0),
        ("The answer is a dog", ["A"], 0.0),
        ("B,", ["B"], 1.0),
        ("**B**", ["B"], 1.0),
        ("[B]", ["B"], 1.0),
        ("(1)", ["1"], 1.0),
        ("B.red", ["B"], 1.0),
        ("e.g. red", ["E"], 0.0),
        ("a, b and c", ["A"], 0.0),
        ("", [""], 1.0),
        ("A cat", ["A"], 0.0),  # an article, no choice
        ("C", ["B"], 0.0),
        ("", ["B"], 0.0),
    ],
)
def test_multiple_choice_by_hand(prediction, answers, expected):
    assert multiple_choice_accuracy(prediction, answers) == expected


def test_cider_is_that_of_coco_caption():
    """Values that pycocoevalcap 1.2 gives."""
    predictions = ["a red circle on the left", "two dogs run", "a blue square"]
    answers = [
        ["a red circle on the right", "the red circle is on the left"],
        ["two dogs are running", "dogs run fast"],
        ["a blue square", "a square that is blue"],
    ]
    assert cider(predictions, answers) == pytest.approx([5.87251277, 2.67333873, 4.70536627], abs=1e-8)
    assert corpus_cider(predictions, answers) == pytest.approx(4.417072589418846, abs=1e-12)
    assert cider(["A red circle, on the left!", *predictions[1:]], answers)[0] == pytest.approx(5.87251277, abs=1e-8)
    assert corpus_cider([], []) == 0.0


def test_the_interval_of_a_share_is_near_the_normal_one():
    low, high = bootstrap_interval([1.0] * 300 + [0.0] * 100)
    half = 1.96 * (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(0.75 - half, abs=0.004)
    assert high == pytest.approx(0.75 + half, abs=0.004)
    assert bootstrap_interval([1.0] * 20) == (pytest.approx(20 / (20 + 1.95996398**2)), 1.0)  # Wilson's
    assert bootstrap_interval([0.3] * 5) == (pytest.approx(0.3), pytest.approx(0.3))
    assert bootstrap_interval([0.0, 1.0, 0.3]) == bootstrap_interval([0.3, 0.0, 1.0])


def test_a_corpus_metric_alone_is_the_main_one():
    scores, summary = summarise(PREDICTIONS, rows(ANSWERS), ["cider", "vqa_accuracy"])
    assert summary["main_metric"] == "cider"
    assert summary["metrics"]["cider"] == pytest.approx(corpus_cider(PREDICTIONS, ANSWERS), abs=1e-9)
    assert summary["intervals"].keys() == {"vqa_accuracy"}
    assert scores[1] == {"vqa_accuracy": 1.0}
    _, summary = summarise(PREDICTIONS, rows(ANSWERS), ["cider"])
    assert summary["metrics"].keys() == {"cider"}


def test_other_metrics_get_the_answers_as_they_are():
    _, summary = summarise(["abc"], rows([["x"]]), ["tests.evaluation.test_metrics.count_answers"])
    assert summary["metrics"] == {"count_answers": 1.0}


def count_answers(prediction: str, answers: list[str]) -> float:
    return float(len(answers))


@pytest.mark.parametrize("name", [name for name in METRICS if name not in VALUES or name == "rouge"])
def test_the_evaluate_module_gives_the_same(name):
    found = module(name).compute(predictions=PREDICTIONS, references=ANSWERS)
    if name == "bleu":
        assert found == {"bleu": corpus_bleu(PREDICTIONS, ANSWERS)}
        assert module("bleu").compute(predictions=["yes"], references=[["yes"]]) == {"bleu": None}
        return
    took_row = [(p, a, Row(answers=tuple(a))) for p, a in zip(PREDICTIONS, ANSWERS, strict=True)]
    values = [METRICS[name](*of[: 3 if name == "ocrbench_accuracy" else 2]) for of in took_row]
    rows = [value if isinstance(value, dict) else {name: value} for value in values]
    assert found == {key: sum(row[key] for row in rows) / 4 for key in rows[0]}


def test_the_summary_counts_what_it_stands_on():
    metadata = [{"answer_type": t} for t in ("yes/no", "open", "open")]
    scores, summary = summarise(
        ["yes", "red", "blue"], rows([["yes"], ["red"], ["red"]], metadata), ["vqa_accuracy"], ["answer_type"]
    )
    assert summary["n"] == 3
    assert summary["metrics"]["vqa_accuracy"] == pytest.approx(2 / 3)
    by = summary["by"]["answer_type"]
    assert by["open"] == {"n": 2, "metrics": {"vqa_accuracy": 0.5}, "intervals": {"vqa_accuracy": [0.0, 1.0]}}
    assert by["yes/no"] == {"n": 1, "metrics": {"vqa_accuracy": 1.0}, "intervals": {"vqa_accuracy": [0.206549, 1.0]}}
    assert [row["vqa_accuracy"] for row in scores] == [1.0, 1.0, 0.0]


def test_a_metric_by_its_dotted_path():
    assert example_metric("tests.evaluation.test_metrics.length")("abc", []) == 3.0
    assert corpus_metric("tests.evaluation.test_metrics.length") is None
    _, summary = summarise(["abc"], rows([["x"]]), ["tests.evaluation.test_metrics.length"])
    assert summary["metrics"] == {"length": 3.0}
    with pytest.raises(UserError, match="did you mean 'rouge'"):
        example_metric("roge")
    with pytest.raises(UserError, match="cannot be imported"):
        example_metric("tests.nothing.here")


def length(prediction: str, answers: list[str]) -> float:
    return float(len(prediction))


ODD = "tests.evaluation.odd_metrics"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["fails"], r"odd_metrics\.fails fails on an empty prediction: ZeroDivisionError: division by zero"),
        (["CONSTANT"], "TypeError: 'int' object is not callable"),
        (["takes_one"], r"TypeError: takes_one\(\) takes 1 positional argument but 2 were given"),
        (["nothing"], "gives None on an empty prediction: it must be a finite number, or a dict of such by name"),
        (["empty"], "gives {} on"),
        (["text"], "gives 'good' on"),
        (["nan"], "gives nan on"),
        (["infinite"], "gives {'one': 1.0, 'other': inf} on"),
        (["one_in_a_list"], "fails on an empty prediction: TypeError: only 0-dimensional arrays"),
    ],
)
def test_a_metric_is_tried_before_anything_else(names, message):
    with pytest.raises(UserError, match=message):
        metric_names([f"{ODD}.{name}" for name in names])


@pytest.mark.parametrize(
    ("metrics", "both"),
    [
        (["vqa_accuracy", f"{ODD}.vqa_accuracy"], f"vqa_accuracy and {ODD}.vqa_accuracy both give a value named"),
        ([f"{ODD}.length", "tests.evaluation.test_metrics.length"], "both give a value named 'length'"),
        (["bleu", f"{ODD}.by_kind"], "both give a value named 'bleu'"),
        (["cider", f"{ODD}.cider"], "both give a value named 'cider'"),
    ],
)
def test_two_values_of_one_name_are_refused(metrics, both):
    with pytest.raises(UserError, match=both):
        metric_names(metrics)


def test_numbers_of_any_library_are_numbers():
    metrics = [f"{ODD}.numpy_scalar", f"{ODD}.numpy_array", f"{ODD}.boolean", f"{ODD}.length"]
    assert metric_names(metrics) == ["numpy_scalar", "numpy_array", "boolean", "length"]
    (row,) = score_examples(["ab"], rows([["ab"]]), metrics)
    assert row == {"numpy_scalar": 0.5, "numpy_array": 0.25, "boolean": 1.0, "length": 2.0}
    assert {type(value) for value in row.values()} == {float}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fails_later", r"The metric .*\.fails_later fails on example test-17: RuntimeError: boom\."),
        ("nan_later", r"The metric .*\.nan_later gives nan on example test-17: it must be a finite number"),
        ("other_names", "other_names gives red on example test-17, and nothing on those before"),
    ],
)
def test_what_goes_wrong_later_names_metric_and_example(name, message):
    assert metric_names([f"{ODD}.{name}"])
    with pytest.raises(UserError, match=message):
        summarise(["", "red"], rows([["a"], ["b"]], ids=["test-3", "test-17"]), [f"{ODD}.{name}"])


def test_a_prediction_without_an_answer_is_wrong():
    assert corpus_bleu(["a b", "x"], [["a b"], []]) == 0.0
    assert corpus_bleu(["the cat sat on the mat", "x"], [["the cat sat on the mat"], []]) == pytest.approx(0.96219546)
    assert corpus_bleu(["x"], [[]]) == corpus_bleu([], []) == 0.0
    _, summary = summarise(["yes", "x"], rows([["yes"], []]), ["vqa_accuracy", "rouge", "anls", "bleu", "cider"])
    assert summary["metrics"]["vqa_accuracy"] == summary["metrics"]["rouge1"] == summary["metrics"]["anls"] == 0.5


NEITHER = {"bleu": "fewer than four words", "rouge2": "fewer than two words"}


@pytest.mark.parametrize(
    ("predictions", "answers", "undefined"),
    [
        (["yes", "a red car on it"], [["yes"], ["red"]], NEITHER),
        (["yes", "red car"], [["yes"], ["red car"]], {"bleu": "fewer than four words"}),
        (["yes", "red car"], [["yes"], ["a red car left"]], {"bleu": "predictions of fewer than four words"}),
        (["", ""], [["yes"], ["a red car left"]], {"bleu": "predictions of fewer than four words"}),
        (["red car on it", "x"], [["yes"], ["a red car left"]], {}),
        (["红色的车", "x"], [["红色汽车"], ["红"]], {}),  # four characters are four words
        (["빨간 차", "x"], [["빨간 차"], ["차"]], {"bleu": "fewer than four words"}),
        (["yes"], [[]], NEITHER),
    ],
)  # fmt: skip
def test_what_short_texts_cannot_have_is_no_number(predictions, answers, undefined):
    kinds = [{"kind": str(index)} for index in range(len(answers))]
    _, summary = summarise(predictions, rows(answers, kinds), ["exact_match", "bleu", "rouge"], ["kind"])
    assert summary.get("undefined", {}) == undefined
    assert {name for name, value in summary["metrics"].items() if value is None} == undefined.keys()
    assert summary["intervals"].keys() == {"exact_match", "rouge1", "rouge2", "rougeL"} - undefined.keys()
    first = summary["by"]["kind"]["0"]
    assert (first["metrics"]["bleu"] is None) == ("bleu" in first["undefined"] if "undefined" in first else False)
    json.dumps(summary, allow_nan=False)


def test_only_the_official_values_can_be_missing():
    own = "tests.evaluation.odd_metrics.by_kind"  # gives a value named bleu
    _, summary = summarise(["yes"], rows([["yes"]]), [own])
    assert summary["metrics"]["bleu"] is not None
    assert "undefined" not in summary
    assert "bleu_tokenizer" not in summary


def test_an_unknown_evaluate_module_is_named():
    with pytest.raises(UserError, match="metric 'bleurt' does not exist; did you mean 'bleu'"):
        module("bleurt")
