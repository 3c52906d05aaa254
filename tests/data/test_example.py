from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from vlmexp.data.example import Example, answer_texts, plain_text, to_example


def test_a_column_without_a_name_has_no_role():
    """As in a table that pandas wrote with its index."""
    row = {"id": "0", "": "7", "picture": ["a.png"], "query": "what?", "reply": ["red"]}
    found = to_example(row, {"image": "picture", "question": "query", "answer": "reply", "choices": None}, [], Path())
    assert (found.images, found.videos, found.answers, found.choices) == ((Path("a.png"),), (), ("red",), ())


def test_the_most_common_answer_is_trained_on():
    assert Example("0", {}, ("a", "b", "b")).answer == "b"
    assert Example("0", {}, ("b", "a")).answer == "b"
    assert Example("0", {}, ()).answer == ""


def test_an_answer_can_be_drawn_by_seed_and_row():
    def answers(seed: int) -> list[str]:
        return [
            to_example({"id": str(n), "a": list("xyzxx")}, {"answer": "a"}, [], Path(), answer_seed=seed).answer
            for n in range(300)
        ]

    first = answers(0)
    assert first == answers(0) != answers(1)
    assert set(first) == {"x", "y", "z"}
    assert 140 < first.count("x") < 220  # three of five annotators said so


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("red", ["red"]),
        (7, ["7"]),
        (True, ["True"]),
        (None, []),
        (float("nan"), []),
        (["red", 3, None, " "], ["red", "3"]),
        ([{"answer": "yes", "answer_id": 1, "answer_confidence": "maybe"}, {"answer": "no"}], ["yes", "no"]),
        ({"answer": "yes"}, ["yes"]),
        ([], []),
        (np.array(["yes", "no"]), ["yes", "no"]),
    ],
)
def test_answers_come_in_many_forms(value, texts):
    assert answer_texts(value) == texts


@pytest.mark.parametrize("value", [["red"], {"red"}, np.array(["red"]), {"text": "red"}, b"red", "\ud800"])
def test_what_is_no_text(value):
    with pytest.raises(ValueError, match=r"no text|half of a character"):
        plain_text(value)


def test_a_place_names_split_row_and_column():
    example = Example("7", {}, (), split="train", columns={"image": "picture"})
    assert example.place("image") == "split train, row 7, column picture"
    assert example.place("video") == "split train, row 7"
