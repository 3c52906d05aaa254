"""Pipes that close, terminals without our letters, streams that are not there: real ones."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT, cli_environment, only_run
from vlmexp.files import read_json

LONG = (
    "def stage(config, run):\n"
    "    from vlmexp.report import print_scores\n"
    "    score = {'n': 3, 'metrics': {'한국 é': 0.5}, 'main_metric': 'x', 'by': {}, 'intervals': {}}\n"
    "    print_scores({'base': score, 'tuned': score}, title='한국 …')\n"
    "    for number in range(20_000):\n"
    "        print('line', number)\n"
    "    return {'metric': 0.5}\n"
)


@pytest.fixture
def shell(tmp_path, data_dir):
    """Run a line of bash in which $V is the command; stdout, stderr and the statuses of its pipe."""
    (tmp_path / "probe.py").write_text(LONG)

    def run(line: str, **environment: str) -> tuple[str, str, list[int]]:
        path = os.pathsep.join([str(ROOT), str(tmp_path), os.environ.get("PYTHONPATH", "")])
        known = cli_environment(data_dir) | {"PYTHONPATH": path, "V": f"{sys.executable} -m vlmexp"} | environment
        script = f'{line}; echo "${{PIPESTATUS[*]}}" >&9'
        done = subprocess.run(
            ["bash", "-c", f"exec 9>{tmp_path / 'statuses'}\n{script}"],
            cwd=tmp_path, env=known, capture_output=True, timeout=100,
        )  # fmt: skip
        statuses = [int(text) for text in (tmp_path / "statuses").read_text().split()]
        return done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), statuses

    return run


@pytest.mark.parametrize("question", ["--help", "--cfg job", "stage=compare compare.runs=[.] compare.format=json"])
def test_a_question_ends_with_its_pipe_and_without_a_word(question, shell, tmp_path):
    for number in range(2):
        (tmp_path / "outputs" / str(number)).mkdir(parents=True)
        (tmp_path / "outputs" / str(number) / "run.json").write_text("{}")
    _, said, statuses = shell(f"(sleep 2; $V {question}) | true")  # nobody is there when it begins to print
    assert said == ""
    assert statuses[0] == 141  # 128 + SIGPIPE, as of any Unix tool


def test_a_run_goes_on_without_its_pipe(shell, tmp_path):
    out, said, statuses = shell("$V stage=probe.stage 2>&1 | head -1")
    assert (len(out.splitlines()), said, statuses) == (1, "", [0, 0])
    assert read_json(only_run(tmp_path) / "run.json")["status"] == "done"


def test_a_run_goes_on_without_any_stream_or_room_for_what_it_prints(shell, tmp_path):
    assert shell("$V stage=probe.stage hydra.run.dir=a <&- >&- 2>&-")[2] == [0]
    assert shell("$V stage=probe.stage hydra.run.dir=b > /dev/full")[2] == [0]
    assert [read_json(tmp_path / name / "run.json")["status"] for name in "ab"] == ["done", "done"]


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "TERM": "dumb"},
        {"PYTHONIOENCODING": "ascii", "COLUMNS": "20"},
        {"PYTHONIOENCODING": "latin-1", "COLUMNS": "0"},
    ],
    ids=["C", "ascii", "latin-1"],
)
def test_a_table_on_a_terminal_without_its_letters(environment, shell):
    out, said, statuses = shell("$V stage=probe.stage", **environment)
    assert (said, statuses) == ("", [0])
    table = out.partition("line 0")[0]
    assert table.splitlines()
    assert "\\ud55c" in table  # what cannot be shown is given by its number
    assert not set(table) & set("─━│┃…")
