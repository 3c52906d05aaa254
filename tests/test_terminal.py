"""Pipes that close, terminals without our letters, streams that are not there: real ones."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from tests.comparison.synthetic import make_run, prediction, write_evaluation
from tests.conftest import ROOT, cli_environment, only_run
from vlmexp import terminal
from vlmexp.files import read_json
from vlmexp.screen import Screen
from vlmexp.terminal import LogFormat, visible

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


# The clipboard, the title, a link, a device string, a cleared screen, a report of the cursor, backspaces, a return, the
# same in one character of ISO 6429, writing turned around, ends of lines that are none, half a character.
HOSTILE = (
    "\x1b]52;c;ZXZpbA==\x07", "\x1b]0;title\x1b\\", "\x1b]8;;http://evil\x1b\\here\x1b]8;;\x1b\\", "\x1bPq#0\x1b\\",
    "\x1b[2J\x1b[H", "\x1b[6n", "\x1bc", "ab\x08\x08cd", "one\rtwo", "\x9d52;c;ZXZpbA==\x9c", "\x9b2J",
    "\u202eevil\u202c", "\u2066a\u2069", "a\u2028b", "a\u0085b", "\x7f\x00\x0e", "\udcff", "\ufeffa",
)  # fmt: skip
ALL = " ".join(HOSTILE)
STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[], str]:
    """From now on, what arrives on a terminal of what is printed to stdout and stderr."""
    arrived: Any = io.StringIO()
    arrived.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", arrived)
    monkeypatch.setattr(sys, "stderr", arrived)
    terminal.outlast_the_pipe()
    return arrived.getvalue


def test_what_steers_a_terminal_is_shown_by_its_code():
    assert visible("a\x1b[31mb\r\n\tc\u202e\x9b\udcff") == "a\\x1b[31mb\n\tc\\u202e\\x9b\\udcff"
    assert visible("한국 עברית नमस्ते é … 👩‍🚀\n") == "한국 עברית नमस्ते é … 👩‍🚀\n"


def test_no_text_steers_the_terminal_by_any_stream(monkeypatch):
    printed = watched(monkeypatch)
    for text in HOSTILE:
        print("print", text, "after")
        print(text, file=sys.stderr)
        sys.stdout.write(text)
        sys.stderr.writelines([text, "\n"])
    handler = logging.StreamHandler(sys.stderr)
    handler.handle(logging.makeLogRecord({"msg": ALL}))
    print("\x1b[A", "\r", sep="")
    print("\x1b[1mbold of a library\x1b[0m")
    assert not STEERS.search(printed())
    assert "bold of a library" in printed()
    assert "\\x1b]52;c;ZXZpbA==\\x07" in printed()


def test_bars_return_to_the_begin_of_their_line_and_nothing_else_does(monkeypatch):
    printed = watched(monkeypatch)
    for _ in tqdm(range(3), desc=f"read {ALL}", postfix={ALL: ALL}, mininterval=0, ncols=0):
        pass
    with tqdm(total=2, desc="outer", mininterval=0) as outer, tqdm(total=2, desc="inner", mininterval=0) as inner:
        inner.update()
        outer.update()
    print("done\rgone")
    moves = printed().replace("\r", "").replace("\x1b[A", "")
    assert not STEERS.search(moves)
    assert "\r" in printed().partition("outer")[0]
    assert "\x1b[A" in printed()
    assert printed().endswith("done\\rgone\n")


def test_tables_keep_their_styles_and_their_cells_are_text(monkeypatch):
    printed = watched(monkeypatch)
    table = Table(ALL, title=f"[link=http://evil]{ALL}[/link]")
    table.add_row(Text(ALL, style="bold link http://evil"))
    console = Screen(force_terminal=True, color_system="standard", width=400)
    console.print(table)
    console.print(ALL, style="red")
    said = printed()
    assert "\x1b[31m" in said
    assert "\x1b[1m" in said
    assert not STEERS.search(re.sub(r"\x1b\[[0-9;]*m", "", said))
    assert "\x1b]8" not in said


def test_a_log_can_be_looked_at():
    record = logging.makeLogRecord({"msg": ALL, "levelname": "INFO", "name": ALL})
    assert not STEERS.search(LogFormat("%(asctime)s %(levelname)s %(name)s: %(message)s").format(record))


def test_a_run_directory_of_somebody_else_steers_no_terminal(tmp_path, monkeypatch):
    """Every text in its files is hostile, and the name of its folder."""
    printed = watched(monkeypatch)
    monkeypatch.chdir(tmp_path)
    text = ALL.replace("\udcff", "").replace("\x00", "").replace("\n", "")
    folder = Path("outputs", re.sub(r"[/\0]", "", text)[:60])
    options = {"model.id": text, "dataset.name": text, "peft.bias": text, "tracking.name": text}
    failed = {
        "status": "failed",
        "error": text,
        "stage": text,
        "id": text,
        "fallbacks": [text],
        "packages": {text: text},
    }
    make_run(folder, options)
    make_run(Path("outputs", "failed"), options, (), **failed)
    make_run(Path("outputs", "other"), {"peft.r": 4})
    for name, directory in (("a", folder), ("b", Path("outputs/other"))):
        rows = [prediction(number, name == "a", question=text, answer_type=text) for number in range(3)]
        scores = [row | {"scores": {"vqa_accuracy": float(name == "a"), text: 1.0}} for row in rows]
        write_evaluation(directory, "finetuned", scores, model=text, dataset=text, undefined={text: text})
        (directory / "train.log").write_text(text)
    (Path("outputs") / "failed" / "train.log").write_text(text)
    names = [json.dumps(str(folder), ensure_ascii=False), "outputs/other"]
    pair = f"[{','.join(names)}]"
    for view in ("runs=[outputs]", "failed=true", f"diff={pair}", f"paired={pair}", "format=csv", "format=md",
                 "format=json", "best=true"):  # fmt: skip
        before = len(printed())
        _call("stage=compare", f"compare.{view}", monkeypatch=monkeypatch)
        assert len(printed()) > before, view
    for arguments in ([f"run={text}"], ["stage=status", f"sweep={text}"], [text], [f"{text}=1"],
                      [f"stage={text}"], [f"dataset.options.{text}=1"], ["-m", f"seed={text},1"]):  # fmt: skip
        _call(*arguments, monkeypatch=monkeypatch)
    assert not STEERS.search(re.sub(r"\x1b\[[0-9;]*m", "", printed()).replace("\rcheck", "").replace("\r ", ""))
    assert "\\x1b]52;c;ZXZpbA==\\x07" in printed()


def _call(*arguments: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra.core.global_hydra import GlobalHydra

    from vlmexp import main

    for name in ("prepare", "end_with_the_pipe", "outlast_the_pipe"):
        monkeypatch.setattr(f"vlmexp.terminal.{name}", lambda: None)
    monkeypatch.setattr(sys, "argv", ["vlmexp", *arguments])
    GlobalHydra.instance().clear()
    with contextlib.suppress(SystemExit):
        main.main()
