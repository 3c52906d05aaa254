"""The files of test servers read back as their own code reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmexp.errors import UserError
from vlmexp.predict.submission import check_column, server_ids, submission


def evalai_answers(path: Path, questions: Path) -> dict[int, str]:
    """What vqaTools/vqa.py of the official VQA code (GT-Vision-Lab/VQA) takes: a list with an answer to each question.

    It looks each `question_id` up among those of the questions' file, where they are numbers.
    """
    results = json.loads(path.read_bytes().decode("ascii"))
    asked = [entry["question_id"] for entry in json.loads(questions.read_text())["questions"]]
    assert isinstance(results, list)
    assert sorted(entry["question_id"] for entry in results) == sorted(asked)
    assert {type(entry["question_id"]) for entry in results} == {int}
    assert {type(entry["answer"]) for entry in results} == {str}
    assert all(entry.keys() == {"question_id", "answer"} for entry in results)
    return {entry["question_id"]: entry["answer"] for entry in results}


@pytest.mark.parametrize(
    ("form", "values", "expected"),
    [
        ("evalai", [7, "262148000", 3.0, " 12 "], [7, 262148000, 3, 12]),
        ("rrc", ["49153", "0"], [49153, 0]),
        ("vizwiz", ["VizWiz_test_1.jpg", "VizWiz_test_2"], ["VizWiz_test_1.jpg", "VizWiz_test_2.jpg"]),
    ],
)  # fmt: skip
def test_ids_are_of_the_type_that_the_server_takes(form, values, expected):
    found = server_ids(form, values, "column")
    assert found == expected
    assert [type(id) for id in found] == [type(id) for id in expected]


@pytest.mark.parametrize(
    ("form", "values", "said"),
    [
        ("evalai", [1, None], r"row 1 of the split has none, and dataset\.submission=evalai takes whole numbers"),
        ("evalai", [float("nan")], "row 0 of the split has none"),
        ("evalai", ["7-1"], r"row 0 of the split is '7-1'"),
        ("evalai", [1.5], r"row 0 of the split is 1\.5"),
        ("rrc", ["٣"], "takes whole numbers"),
        ("rrc", [5, "5"], r"there more than once: 5 \(1 in all\)"),
        ("vizwiz", ["a.jpg", " "], "row 1 of the split has none, and dataset.submission=vizwiz takes the names"),
    ],
)
def test_ids_that_no_server_takes(form, values, said):
    with pytest.raises(UserError, match=said):
        server_ids(form, values, "column")


def test_a_column_that_there_is_not():
    with pytest.raises(UserError, match=r"has no column 'questionId'; did you mean 'question_id'\?"):
        check_column("questionId", ["question_id", "image"], "test")


def test_an_answer_is_kept_to_the_letter(tmp_path):
    answers = ['"no"\n', "빨강 \N{LINE SEPARATOR}", "", "null"]
    path, questions = tmp_path / "submission.json", tmp_path / "questions.json"
    path.write_text(submission("evalai", [4, 3, 2, 1], answers))
    questions.write_text(json.dumps({"questions": [{"question_id": number} for number in range(1, 5)]}))
    assert evalai_answers(path, questions) == dict(zip([4, 3, 2, 1], answers, strict=True))
    assert json.loads(submission("rrc", [8], ["a"])) == [{"questionId": 8, "answer": "a"}]
    assert json.loads(submission("vizwiz", ["b.jpg"], ["a"])) == [{"image": "b.jpg", "answer": "a"}]
