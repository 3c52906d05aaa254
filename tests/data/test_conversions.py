"""What a table program makes of lists, whole numbers and choices, and what it was before."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmexp.data.examples import Examples
from vlmexp.data.letters import letter, lettered
from vlmexp.data.literals import is_answers, parsed
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.files import read_jsonl

COLUMNS = {"question": "question", "answer": "answer"}
CHOICES = {**COLUMNS, "choices": "options"}
COLORS = ["red", "green", "blue", "yellow"]


def table(path: Path, rows: Sequence[dict]) -> str:
    """Write a csv or tsv file."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def lines(path: Path, rows: Sequence[dict]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def asked(answers: Sequence[object], **columns: object) -> list[dict]:
    return [{"question": f"{number}?", "answer": answer, **columns} for number, answer in enumerate(answers)]


def read(folder: Path, columns: dict = COLUMNS, convert: str = "auto", **files: str) -> Prepared:
    return prepare(
        folder / "data", "tables", "1", "files", files, {split: split for split in files}, 0.0, 0.0, 0, columns,
        on_bad_sample="skip", max_bad_share=0.9, convert=convert,
    )  # fmt: skip


def answers(data: Prepared, columns: dict = COLUMNS, split: str = "train") -> list[tuple[str, ...]]:
    return [example.answers for example in Examples(data, split, columns)]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("['red', 'red', 'dark red']", ["red", "red", "dark red"]),
        ('["red", "it\'s"]', ["red", "it's"]),
        ("['red', \"it's\", 3, None]", ["red", "it's", 3, None]),
        ("('red', 'blue')", ["red", "blue"]),
        (str(np.array(["red", "red", "dark red"])), ["red", "red", "dark red"]),  # without commas
        ("['red'\n \"it's\"]", ["red", "it's"]),
        (repr(np.array(["red", "blue"], dtype=object)), ["red", "blue"]),
        (str([np.str_("red"), np.str_("np.str_('x')")]), ["red", "np.str_('x')"]),
        (
            str({"text": np.array(["a", "b"], dtype=object), "answer_start": np.array([3, 4])}),
            {"text": ["a", "b"], "answer_start": [3, 4]},
        ),
        ("[3, 4.5]", [3, 4.5]),
        ("[]", []),
        ("['a', nan]", ["a", None]),
        *((text, None) for text in (
            "[redacted]", "red", "", "[", "['red'", "(red)", "('red')", "{red}", "['a', 'b' 'c']", "['a' ... 'z']",
            "[3 4]", "[f'{1}']", "[__import__('os')]", "[x for x in 'ab']", "'[]'", "[a](b)",
        )),
    ],
)  # fmt: skip
def test_lists_and_objects_that_are_written_as_text(text, value):
    assert parsed(text) == value


def test_a_text_of_many_brackets_is_a_text():
    assert parsed("[" * 2000 + "]" * 2000) is None


@pytest.mark.parametrize(
    ("value", "is_so"),
    [
        (["red"], True), (["red", 3, None], True), ([{"answer": "a", "answer_id": 1}], True), ({"text": ["a"]}, True),
        ([10, 20, 30, 40], False), ([], False), ([["a"]], False), ({"answer": "red"}, False), ({"text": "a"}, False),
        ({"text": ["a"], "box": [1]}, False), ([{"text": "total", "box": [1, 2]}], False), (None, False),
    ],
)  # fmt: skip
def test_what_can_only_be_accepted_answers(value, is_so):
    """Boxes, and objects that a model is to write, are none."""
    assert is_answers(value) == is_so


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl"])
def test_written_lists_become_lists_and_that_is_said_once(ending, tmp_path):
    rows = asked(["['red', 'red', 'dark red']", "['blue']", '["a, b", "c"]'])
    name = tmp_path / f"train.{ending}"
    data = read(tmp_path, train=lines(name, rows) if ending == "jsonl" else table(name, rows))
    assert answers(data) == [("red", "red", "dark red"), ("blue",), ("a, b", "c")]
    assert Examples(data, "train", COLUMNS)[0].answer == "red"
    assert data.manifest["converted"] == [
        "3 texts of the column 'answer' are lists of answers, for example \"['red', 'red', 'dark red']\" became "
        "['red', 'red', 'dark red']; dataset.convert=never leaves them as they are."
    ]
    plain = read(tmp_path, convert="never", train=str(name))
    assert answers(plain)[0] == ("['red', 'red', 'dark red']",)
    assert plain.manifest["converted"] == []


def test_a_list_in_every_split_counts_if_most_of_one_are_lists(tmp_path):
    """A test file of plain answers beside a train file of lists, and the other way round."""
    train = table(tmp_path / "train.csv", asked(["['red', 'blue']", "['a']", "green"]))
    test = lines(tmp_path / "test.jsonl", asked(["red", "blue", "['x', 'y']", "[redacted]"]))
    data = read(tmp_path, train=train, test=test)
    assert answers(data) == [("red", "blue"), ("a",), ("green",)]
    assert answers(data, split="test") == [("red",), ("blue",), ("x", "y"), ("[redacted]",)]


@pytest.mark.parametrize(
    ("given", "auto", "always", "said"),
    [
        (
            ["print(x)", "['a', 'b']", "3", "[redacted]", "x"], [("['a', 'b']",)], [("a", "b")],
            "1 of 5 values of the column 'answer' are like lists",
        ),
        (["[1, 2, 3, 4]", "[5, 6, 7, 8]"], [("[1, 2, 3, 4]",)], [("1", "2", "3", "4")], "2 of 2 values of the column"),
        (["1.0", "2.0"], [("1.0",)], [("1",)], "The texts of the column 'answer' are all like '3.0' and stay so"),
    ],
)  # fmt: skip
def test_what_can_be_read_in_two_ways_stays_and_is_said(given, auto, always, said, tmp_path):
    file = table(tmp_path / "train.csv", asked(given))
    data = read(tmp_path, train=file)
    assert answers(data) == [(text,) for text in given]
    assert set(auto) <= set(answers(data))
    (sentence,) = data.manifest["converted"]
    assert sentence.startswith(said)
    assert sentence.endswith("dataset.convert=always reads them so, and never leaves this out.")
    assert set(always) <= set(answers(read(tmp_path, convert="always", train=file)))


def test_a_list_without_items_is_an_empty_answer(tmp_path):
    data = read(tmp_path, train=table(tmp_path / "train.csv", asked(["['a']", "[]", "['', 'b']"])))
    assert answers(data) == [("a",), ("b",)]
    (bad,) = read_jsonl(data.folder / "bad.jsonl")
    assert (bad["id"], bad["reason"]) == ("train-1", "empty answer")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["3.0", "", "-4.0", "12"], ["3", "-4", "12"]),  # a missing one has made them floats
        (["1.0", "2.0", "3.10", ""], ["1.0", "2.0", "3.10"]),  # versions
        (["1.0", "", "red"], ["1.0", "red"]),
        (["007", "", "1e5"], ["007", "1e5"]),
    ],
)
def test_whole_numbers_in_a_csv_file(given, expected, tmp_path):
    assert answers(read(tmp_path, train=table(tmp_path / "train.csv", asked(given)))) == [(text,) for text in expected]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([3.0, None, 1e16], ["3", "10000000000000000"]),
        ([3.0, 4.0], ["3", "4"]),
        ([3.0, 4.5], ["3.0", "4.5"]),
        ([3, 4], ["3", "4"]),
        ([True, False], ["yes", "no"]),
        (["True", "3.0"], ["True", "3.0"]),
    ],
)
def test_numbers_and_booleans_with_a_type(given, expected, tmp_path):
    columns = {
        "question": [f"{number}?" for number in range(len(given))],
        "answer": given,
        "year": [2019.0] * len(given),
    }
    pq.write_table(pa.table(columns), tmp_path / "train.parquet")
    with_year = {**COLUMNS, "year": "year"}
    data = read(tmp_path, with_year, train=str(tmp_path / "train.parquet"))
    assert answers(data, with_year) == [(text,) for text in expected]
    assert Examples(data, "train", with_year)[0].fields["year"] == "2019"
    plain = read(tmp_path, with_year, "never", train=str(tmp_path / "train.parquet"))
    assert answers(plain, with_year) == [(str(value),) for value in given if value is not None]


@pytest.mark.parametrize(
    ("given", "options", "expected"),
    [
        ([0, 1, 3], COLORS, ["red", "green", "yellow"]),
        ([0.0, 2.0], COLORS, ["red", "blue"]),
        (["0", "2"], str(COLORS), ["red", "blue"]),
        ([[0, 2], [1]], COLORS, ["red", "green"]),
        (["A", "C"], COLORS, ["A", "C"]),
        (["red", "blue"], {"A": "red", "B": "blue"}, ["red", "blue"]),
        ([0, 1], {"text": ["x", "y"], "label": ["A", "B"]}, ["x", "y"]),
        ([1, 2, 4], COLORS, ["1", "2", "4"]),  # from 1 on
        ([2, 3], [1, 2, 3, 4], ["2", "3"]),  # choices themselves
        ([0, 3], [3, 5, 7, 9], ["3", "9"]),  # only the numbers fit both
        (["2", "red"], COLORS, ["2", "red"]),
        ([True, False], ["True", "False"], ["True", "False"]),
        ([True, False], ["x", "y"], ["yes", "no"]),
    ],
)
def test_answers_that_are_numbers_of_choices(given, options, expected, tmp_path):
    data = read(tmp_path, CHOICES, train=lines(tmp_path / "train.jsonl", asked(given, options=options)))
    assert [found[0] for found in answers(data, CHOICES)] == expected


def test_numbers_that_may_be_choices_or_their_numbers_are_said(tmp_path):
    file = lines(tmp_path / "train.jsonl", asked([2, 3], options=["1", "2", "3", "4"]))
    (said,) = read(tmp_path, CHOICES, train=file).manifest["converted"]
    assert said.startswith("The answers of the column 'answer' are choices and not taken for their numbers; ")
    assert answers(read(tmp_path, CHOICES, "always", train=file), CHOICES) == [("3",), ("4",)]
    file = lines(tmp_path / "train.jsonl", asked([1, 4], options=COLORS))
    (said,) = read(tmp_path, CHOICES, train=file).manifest["converted"]
    assert said.endswith("neither choices nor their numbers from 0 on: they stay as they are.")


def test_choices_are_a_field_of_the_prompt(tmp_path):
    rows = asked([1], options=COLORS) + asked([0], options=["yes"])
    data = read(tmp_path, CHOICES, train=lines(tmp_path / "train.jsonl", rows))
    first, second = Examples(data, "train", CHOICES)
    assert first.fields["choices"] == "A. red\nB. green\nC. blue\nD. yellow"
    assert (first.choices, first.answers) == (tuple(COLORS), ("green",))
    assert second.fields["choices"] == "A. yes"


def test_letters_go_on_behind_z():
    assert [letter(number) for number in (0, 25, 26, 27, 51, 52, 701, 702)] == [
        "A", "Z", "AA", "AB", "AZ", "BA", "ZZ", "AAA",
    ]  # fmt: skip
    assert lettered(map(str, range(28))).splitlines()[25:] == ["Z. 25", "AA. 26", "AB. 27"]
