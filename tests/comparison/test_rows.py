from __future__ import annotations

import json

import pytest

from tests.comparison.synthetic import make_run, make_sweep
from vlmexp.comparison.reading import find_runs
from vlmexp.comparison.rows import (
    Score,
    about_intervals,
    group_seeds,
    main_metric,
    make_rows,
    mark_differences,
    scores_of,
    short_options,
    sort_rows,
    varying,
)
from vlmexp.errors import UserError
from vlmexp.runs import NOT_IN_KEY


def rows_of(folder, evaluation="finetuned"):
    rows = make_rows(find_runs([folder], 300), evaluation)
    mark_differences(rows, evaluation)
    return rows


def test_a_row_has_scores_with_intervals_and_cost(zoo):
    row = next(row for row in rows_of(zoo) if row.name == "2")
    score = row.scores["vqa_accuracy"]
    assert (score.value, score.n) == (0.9, 10)
    assert (score.low, score.high, score.method) == (0.7, 1.0, "bootstrap")
    assert row.base["vqa_accuracy"].value == 0.0
    assert (row.seconds, row.samples_per_s, row.memory_gib) == (90.0, 100.5, 1.5)
    assert row.scores["eval_loss"].low is None


def test_an_interval_is_the_stored_one_or_wilsons_or_none():
    stored = {"n": 10, "metrics": {"vqa_accuracy": 0.9, "bleu": 0.5}, "intervals": {"vqa_accuracy": [0.7, 1.0]}}
    scores = scores_of(stored)
    assert (scores["vqa_accuracy"].low, scores["vqa_accuracy"].method) == (0.7, "bootstrap")
    assert (scores["bleu"].low, scores["bleu"].method) == (None, None)
    older = scores_of({"n": 10, "metrics": {"exact_match": 0.8, "vqa_accuracy": 0.8}})
    assert (older["exact_match"].low, older["exact_match"].high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert older["exact_match"].method == "Wilson"
    assert older["vqa_accuracy"].low is None, "its examples score between 0 and 1, and only they could tell"
    broken = scores_of({"n": "many", "metrics": {"exact_match": 0.8}, "intervals": {"exact_match": [None, 1]}})
    assert broken["exact_match"] == Score(0.8)


def test_how_intervals_were_found_is_told(zoo, tmp_path):
    assert about_intervals(rows_of(zoo), "vqa_accuracy") == (
        "95 % intervals: bootstrap over examples; no interval for 1 that stored none."
    )
    assert about_intervals(rows_of(zoo), "exact_match") == (
        "95 % intervals: bootstrap over examples; Wilson's for 1 that stored none."
    )
    assert about_intervals(rows_of(zoo), "eval_loss") == ""


def test_the_best_is_first_and_what_has_no_value_last(zoo):
    names = [row.name for row in sort_rows(rows_of(zoo), "vqa_accuracy")]
    assert names == ["older", "other", "2", "0", "1", "3", "lost", "broken", "preempted", "4", "5", "alive"]


def test_of_losses_the_smallest_is_best(tmp_path):
    for name, loss in (("a", 2.0), ("b", 1.0)):
        make_run(tmp_path / name, losses=[loss])
    assert [row.name for row in sort_rows(rows_of(tmp_path), "eval_loss")] == ["b", "a"]


def test_only_what_varies_is_shown(zoo):
    options = [row.run.options for row in rows_of(zoo)]
    assert varying(options, NOT_IN_KEY) == ["peft.r", "seed", "train.learning_rate"]


def test_an_option_that_an_older_version_lacks_does_not_vary():
    assert varying([{"a": 1, "new": None}, {"a": 2}], []) == ["a"]
    assert varying([{"a.b": 1, "c": 1}, {"a.b": 2, "c": 2}], ["a"]) == ["c"]


def test_options_are_shown_without_their_group():
    options = ["peft.r", "model.revision", "dataset.revision", "seed", "dataset.max_examples.train"]
    assert short_options(options) == {
        "peft.r": "r", "model.revision": "model.revision", "dataset.revision": "dataset.revision", "seed": "seed",
        "dataset.max_examples.train": "max_examples.train",
    }  # fmt: skip


def test_what_was_evaluated_otherwise_is_marked(zoo):
    marks = {row.name: row.marks for row in rows_of(zoo) if row.marks}
    assert marks == {"other": ["other data", "n is 5, not 10"]}


def test_seeds_are_one_row(zoo):
    rows = {row.name: row for row in group_seeds(rows_of(zoo), NOT_IN_KEY)}
    pair = rows["0 +1"]
    score = pair.scores["vqa_accuracy"]
    assert (score.value, score.seeds, score.n) == (pytest.approx(0.55), 2, 10)
    assert score.deviation == pytest.approx(0.05 * 2**0.5)  # of 0.6 and 0.5
    assert rows["2 +1"].scores["vqa_accuracy"].seeds == 1
    assert rows["2 +1"].status == "1 done, 1 failed"
    assert rows["2 +1"].marks == []
    assert rows["2 +1"].note == "OutOfMemoryError: 80 GiB is not enough"


def test_a_point_that_has_not_started_belongs_to_its_seeds(zoo):
    sweep = next(zoo.glob("multirun/*/*"))
    points = [
        {"point": n, "overrides": [f"peft.r={rank}", f"seed={n}"], "directory": str(n)} for n, rank in ((6, 4), (7, 32))
    ]
    with (sweep / "points.jsonl").open("a") as file:
        file.write("".join(json.dumps(point) + "\n" for point in points))
    rows = {row.name: row for row in group_seeds(rows_of(zoo), NOT_IN_KEY)}
    assert rows["0 +2"].status == "2 done, 1 pending"
    assert rows["0 +2"].scores["vqa_accuracy"].seeds == 2
    assert rows["7"].status == "pending"
    assert rows["4 +1"].status == "pending"


def test_scores_on_other_data_are_not_averaged(tmp_path):
    make_run(tmp_path / "one", {"seed": 0}, [True, True])
    make_run(tmp_path / "two", {"seed": 1}, [True, False])
    make_run(tmp_path / "three", {"seed": 2}, [False])
    values = [row.scores["vqa_accuracy"].value for row in group_seeds(rows_of(tmp_path), NOT_IN_KEY)]
    assert sorted(values) == [0.0, 0.75]


def test_a_seed_that_ran_twice_counts_once(tmp_path):
    make_run(tmp_path / "old", {}, [True, True], created="2026-01-01")
    make_run(tmp_path / "new", {}, [True, False], created="2026-01-02")
    make_run(tmp_path / "one", {"seed": 1}, [False, False])
    (row,) = group_seeds(rows_of(tmp_path), NOT_IN_KEY)
    assert (row.scores["vqa_accuracy"].value, row.scores["vqa_accuracy"].seeds) == (0.25, 2)


def test_the_metric_is_that_of_most_runs(zoo, tmp_path):
    rows = rows_of(zoo)
    assert main_metric(rows, None, "finetuned") == "vqa_accuracy"
    assert main_metric(rows, "exact_match", "finetuned") == "exact_match"
    with pytest.raises(UserError, match="did you mean 'exact_match'"):
        main_metric(rows, "exact_mach", "finetuned")
    make_run(tmp_path / "only" / "trained", {}, [])
    assert main_metric(rows_of(tmp_path / "only"), None, "finetuned") == "eval_loss"


def test_hundreds_of_runs(tmp_path):
    make_sweep(tmp_path, 300)
    rows = sort_rows(rows_of(tmp_path), "vqa_accuracy")
    assert len({row.name for row in rows}) == 300
    assert varying([row.run.options for row in rows], NOT_IN_KEY) == ["peft.r", "seed", "train.learning_rate"]
    values = [row.scores["vqa_accuracy"].value for row in rows]
    assert values == sorted(values, reverse=True)
