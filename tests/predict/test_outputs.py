from __future__ import annotations

import csv
import io
from pathlib import Path

from tests.conftest import example
from vlmexp.predict.outputs import as_csv, counted, prediction_line


def test_nothing_in_the_table_is_a_formula():
    said = [
        "=1+1",
        "+1-2",
        "@SUM(A1)",
        "-cmd|' /C calc'!A0",
        "\t=1",
        " =1",
        "\r=1",
        "-5",
        "+3.2",
        "a=b",
        '红,\n"x"',
        "",
    ]
    table = as_csv([{"id": str(n), "prediction": text} for n, text in enumerate(said)])
    rows = list(csv.DictReader(io.StringIO(table, newline="")))
    expected = ["'=1+1", "'+1-2", "'@SUM(A1)", "'-cmd|' /C calc'!A0", "'\t=1", "' =1", "'\n=1", "-5", "+3.2", "a=b"]
    assert [row["prediction"] for row in rows] == [*expected, '红,\n"x"', ""]


def test_lines_of_different_kinds_are_one_table():
    first = prediction_line(
        example("q?", "a", Path("/x/a.png"), Path("/x/b.png")), {"prediction": "red", "cut": True}, str
    )
    assert first == {"id": "0", "images": ["/x/a.png", "/x/b.png"], "question": "q?", "prediction": "red", "cut": True}
    lines = [first | {"ranking": [{"answer": "red"}]}, {"id": "1", "error": "gone"}]
    assert as_csv(lines) == ("id,images,question,prediction,cut,error\n0,/x/a.png; /x/b.png,q?,red,True,\n1,,,,,gone\n")
    assert counted(lines) == {"answered": 1, "cut": 1, "failed": 1}
