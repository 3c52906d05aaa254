"""stage=compare as it is typed."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.comparison.synthetic import make_run
from tests.conftest import cli_environment


@pytest.fixture
def compare(cli, zoo):
    def run(*arguments: str, cwd=zoo, **environment: str):
        return cli("stage=compare", *arguments, cwd=cwd, **environment)

    return run


def test_all_runs_are_compared_and_nothing_is_written(compare, zoo):
    before = sorted(zoo.rglob("*"))
    done = compare()
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("12 runs: 5 done, 2 pending, 1 failed, 1 running, 1 broken, 1 lost, 1 preempted")
    assert sorted(zoo.rglob("*")) == before


def test_it_does_without_torch_and_numpy(zoo, data_dir):
    script = (
        "import sys\nfrom vlmexp.main import main\nmain()\n"
        "heavy = {'torch', 'transformers', 'peft', 'datasets', 'numpy', 'PIL', 'pyarrow'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "stage=compare"],
        cwd=zoo, env=cli_environment(data_dir), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_best_run_is_two_lines_for_a_script(compare):
    done = compare("compare.best=true", "compare.runs=[multirun]")
    assert done.stdout == ("multirun/2026-01-02/10-00-00-000000/2\npython -m vlmexp peft.r=8 seed=0\n")
    assert done.stderr == ""


def test_the_best_of_unlike_runs_says_so(compare):
    done = compare("compare.best=true")
    assert done.stdout.splitlines()[0] == "outputs/older"
    assert "Not all runs were evaluated alike: other data." in done.stderr


def test_the_best_by_seeds_is_of_the_best_mean(compare, tmp_path):
    for name, seed, rank, hits in (("a", 0, 4, 9), ("b", 1, 4, 1), ("c", 0, 8, 8), ("d", 1, 8, 7)):
        make_run(tmp_path / "mine" / name, {"peft.r": rank, "seed": seed}, [True] * hits + [False] * (10 - hits))
    first = compare("compare.best=true", "compare.runs=[mine]")
    second = compare("compare.best=true", "compare.runs=[mine]", "compare.group_seeds=true")
    assert [done.stdout.splitlines()[0] for done in (first, second)] == ["mine/a", "mine/c"]


def test_failures_come_with_the_end_of_their_log(compare):
    done = compare("compare.failed=true")
    assert done.stdout.startswith("3 of 12 runs failed or were lost")
    for part in (
        "at x", "10-00-00-000000/3/train.log", "OutOfMemoryError: 80 GiB\n", "silent for", "run.json cannot be read",
        "python -m vlmexp run=multirun/2026-01-02/10-00-00-000000/3\n",
    ):  # fmt: skip
        assert part in done.stdout


def test_two_runs_are_paired(compare):
    done = compare("compare.paired=[0,2]")
    assert "3 gained, 0 lost, 7 alike; p = 0.25, luck alone could explain it." in done.stdout
    assert "what is in picture 7?" in done.stdout


def test_a_run_is_paired_with_its_base(compare):
    done = compare("compare.paired=[2]", "compare.format=json")
    content = json.loads(done.stdout)
    assert (content["first run"], content["second run"]) == ("base", "fine-tuned")
    assert (content["gains"], content["losses"], content["difference"]) == (9, 0, pytest.approx(0.9))
    assert [row["id"] for row in content["rows"]] == [f"test-{n}" for n in range(9)]


def test_unlike_data_are_noted_in_a_pairing(compare):
    assert "Their data have different fingerprints" in compare("compare.paired=[0,other]").stdout


def test_two_runs_are_told_apart(compare):
    done = compare("compare.diff=[0,2]", "compare.format=csv")
    assert done.stdout == "part,what,first,second\nconfig,peft.r,4,8\n"


@pytest.mark.parametrize("style", ["table", "md", "csv", "json"])
def test_a_file_is_written_and_named(style, compare, zoo):
    done = compare(f"compare.format={style}", "compare.output=out/runs.txt")
    assert done.stdout.split() == [style, "out/runs.txt"]
    assert "OutOfMemoryError" in (zoo / "out" / "runs.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["compare.runs=[nowhere]"], ["no directory nowhere"]),
        (["compare.metric=vqa"], ["'vqa'", "did you mean 'vqa_accuracy'?"]),
        (["compare.diff=[0,9]"], ["compare.diff: there is no run '9'", "There are: "]),
        (["compare.paired=[3]"], ["base_vlm_model_predictions.jsonl", "evaluate that run first"]),
        (["compare.best=true", "compare.failed=true"], ["compare.best and compare.failed are different views"]),
        (["run=outputs/lost"], ["stage=compare has no use for run=outputs/lost"]),
        (["compare.output=outputs"], ["compare.output=outputs cannot be written", "name another file"]),
        (["-m"], ["nothing to sweep", "leave out -m"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_a_mistake_gets_one_sentence(arguments, parts, compare, zoo):
    before = sorted(zoo.rglob("*"))
    done = compare(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    for part in parts:
        assert part in done.stderr
    assert sorted(zoo.rglob("*")) == before


def test_the_report_is_written_and_named(compare, zoo):
    done = compare("compare.html=out/report.html")
    assert done.stdout.splitlines()[-1].split() == ["report", "out/report.html"]
    assert (zoo / "out" / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_without_runs_there_is_a_way_out(cli):
    done = cli("stage=compare")
    assert done.returncode == 2
    assert "start one, or name their folders with compare.runs=[DIR,...]" in done.stderr
