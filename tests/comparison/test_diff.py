from __future__ import annotations

from tests.comparison.synthetic import make_run
from vlmexp.comparison.diff import diff_sheet
from vlmexp.comparison.reading import read_run
from vlmexp.runs import NOT_IN_KEY


def found(first, second):
    sheet = diff_sheet(read_run(first, 300), read_run(second, 300), NOT_IN_KEY)
    return [tuple(row.values()) for row in sheet.rows], sheet.notes


def test_every_part_is_compared(tmp_path):
    first = make_run(tmp_path / "a", {"peft.r": 4})
    second = make_run(
        tmp_path / "b",
        {"peft.r": 8, "collator.system_prompt": "Say yes.", "stage": "train", "tracking.report_to": "wandb"},
        packages={"torch": "2.15.0", "peft": "0.21.2"},
        git={"sha": "decade", "dirty": True},
        data={
            "name": "squares",
            "folder": str(tmp_path / "data"),
            "fingerprint": "b" * 64,
            "splits": {"train": {"dropped": 3}},
        },
        fallbacks=["float32 instead of bfloat16"],
    )
    (second / "git.diff").write_text("x")
    assert found(first, second)[0] == [
        ("config", "peft.r", "4", "8"),
        ("prompt", "collator.system_prompt", "Answer briefly.", "Say yes."),
        ("data", "fingerprint", "a" * 64, "b" * 64),
        ("data", "splits.train.dropped", None, "3"),
        ("packages", "torch", "2.14.1", "2.15.0"),
        ("code", "dirty", "false", "true"),
        ("code", "git.diff (SHA-256)", None, "2d711642b726"),
        ("code", "sha", "c0ffee", "decade"),
        ("run", "fallbacks", None, "['float32 instead of bfloat16']"),
    ]


def test_equal_runs_do_not_differ(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b")
    assert found(first, second) == ([], ["The two runs do not differ in anything recorded."])


def test_an_option_that_is_new_and_null_is_no_difference(tmp_path):
    first, second = make_run(tmp_path / "a"), make_run(tmp_path / "b", {"model.new": None})
    assert found(first, second)[0] == []
