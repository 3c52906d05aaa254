"""Runs that were evaluated on suites: a column a data set, their mean rank, and the order by one of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import hydra
import pytest
from rich.console import Console

from tests.comparison.synthetic import make_run, prediction, write_evaluation
from tests.comparison.test_report import build, content_of
from tests.comparison.test_rows import rows_of
from vlmexp import main
from vlmexp.checks import checked
from vlmexp.comparison.rows import main_metric, sort_rows
from vlmexp.comparison.stage import compare
from vlmexp.comparison.table import full_sheet, print_leaderboard
from vlmexp.errors import UserError


def run_with(folder: Path, **hits: int) -> Path:
    """A run with ten answers to each data set, so many of them right; before its training it had half of them."""
    run = make_run(folder, {}, [], suite={name: {"stages": {}} for name in hits})
    for name, right in hits.items():
        part = run / "suite" / name
        (part / "evaluation").mkdir(parents=True)
        write_evaluation(part, "finetuned", [prediction(number, number < right) for number in range(10)])
        write_evaluation(part, "base", [prediction(number, number < 5) for number in range(10)])
    return run


@pytest.fixture
def suites(tmp_path) -> Path:
    """On things a is before b and c, which are alike; on charts it is b, c, a."""
    for name, hits in (("a", (8, 5)), ("b", (6, 9)), ("c", (6, 7))):
        run_with(tmp_path / name, things=hits[0], charts=hits[1])
    return tmp_path


def table(folder: Path, metric: str | None, width: int = 160) -> list[str]:
    rows, buffer = rows_of(folder), io.StringIO()
    metric = main_metric(rows, metric, "finetuned")
    print_leaderboard(Console(file=buffer, width=width), sort_rows(rows, metric), [], metric, "title")
    return buffer.getvalue().splitlines()


def ranks(folder: Path) -> Mapping[str, float | None]:
    return {row.name: found.value if (found := row.scores.get("mean_rank")) else None for row in rows_of(folder)}


def test_equal_scores_share_their_places(suites):
    assert ranks(suites) == {"a": (1 + 3) / 2, "b": (2.5 + 1) / 2, "c": (2.5 + 2) / 2}


def test_only_data_sets_that_all_suites_have_are_ranked(suites):
    run_with(suites / "d", things=9)
    make_run(suites / "without", {}, [True])
    assert ranks(suites) == {"a": 2.0, "b": 3.5, "c": 3.5, "d": 1.0, "without": None}
    run_with(suites / "e", other=9)
    assert set(ranks(suites).values()) == {None}


def test_the_table_has_a_column_for_each(suites):
    lines = table(suites, None)
    assert [line.split()[:4] for line in lines if line[:2] in ("a ", "b ", "c ")] == [
        ["b", "1.75", "60.00", "90.00"], ["a", "2", "80.00", "50.00"], ["c", "2.25", "60.00", "70.00"],
    ]  # fmt: skip
    assert "mean rank: over the 2 data sets that all suites have, 1 is the best." in lines


def test_one_of_them_sorts(suites):
    lines = table(suites, "things/vqa_accuracy")
    assert [line.split()[0] for line in lines if line[:2] in ("a ", "b ", "c ")] == ["a", "b", "c"]
    assert next(line for line in lines if line.startswith("a ")).split()[1] == "80.00"
    assert any("+30.00" in line for line in lines if line.startswith("a "))  # over the base model's 50 %
    with pytest.raises(UserError, match="did you mean 'things/vqa_accuracy'"):
        table(suites, "things/vqa_acuracy")
    row = full_sheet(sort_rows(rows_of(suites), "mean_rank"), [], "mean_rank", "title").rows[0]
    assert (row["run"], row["mean_rank"], row["charts/vqa_accuracy"]) == ("b", 1.75, 0.9)


def test_another_sample_of_one_of_them_is_marked(suites):
    rows = [prediction(number, True) for number in range(10)]
    write_evaluation(suites / "c" / "suite" / "charts", "finetuned", rows, sample="random sample with seed 1")
    assert {row.name: row.marks for row in rows_of(suites)}["c"] == ["other sample (charts)"]


def test_the_report_shows_the_answers_to_the_one_that_sorts(suites):
    content = content_of(build(suites, metric="things/vqa_accuracy"))
    assert content["judge"] == "things/vqa_accuracy"
    assert "things/vqa_accuracy" in content["shares"]
    assert content["runs"][0]["scores"]["charts/vqa_accuracy"] in (0.5, 0.7, 0.9)
    assert {run["name"]: run["by"]["answer_type"]["open"] for run in content["runs"]}["a"] == [0.8, 5]
    assert len(content["examples"]) == 10
    assert "mean_rank" in content["losses"]
    assert "mean rank: over the 2 data sets" in content["intervals"]


def test_two_runs_are_paired_on_one_of_them(suites, monkeypatch, capsys):
    monkeypatch.chdir(suites)
    overrides = ["stage=compare", "compare.runs=[a,b]", "compare.paired=[b,a]", "compare.metric=things/vqa_accuracy"]
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(main.CONFIG_DIR)):
        config = checked(hydra.compose("config", overrides))
    compare(config)
    assert "+20.00 points" in capsys.readouterr().out


def test_a_name_that_leads_elsewhere_is_not_read(suites, tmp_path):
    run = make_run(tmp_path / "z", {}, [True], suite={"../../a/suite/things": {}})
    assert next(row for row in rows_of(tmp_path) if row.run.directory == run).run.suite == {}
