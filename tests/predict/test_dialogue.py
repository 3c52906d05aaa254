"""Questions in the terminal: the model is loaded once, and what is mistyped is asked for again."""

from __future__ import annotations

import builtins
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from vlmexp.files import read_json, read_jsonl
from vlmexp.predict.stage import predict
from vlmexp.runs import Run


@pytest.fixture
def talk(
    compose, tmp_path, monkeypatch, capsys
) -> Callable[..., tuple[list[dict[str, Any]], list[str], dict[str, Any]]]:
    """Type lines, of which a function is called, until the input ends; predictions, lines on stdout, and run.json."""

    def converse(*typed: str | Callable[[], None], overrides: tuple[str, ...] = ()):
        lines = iter(typed)

        def read(prompt: str) -> str:
            line = next(lines, None)
            if line is None:
                raise EOFError
            return line if isinstance(line, str) else line() or ""

        monkeypatch.setattr(builtins, "input", read)
        config = compose("stage=predict", "threads=1", "evaluation.max_new_tokens=4", *overrides)
        with Run.open(tmp_path / "run", config, []) as run:
            run.conclude(predict(config, run))
        folder = tmp_path / "run"
        said = capsys.readouterr().out.splitlines()
        return read_jsonl(folder / "predictions" / "predictions.jsonl"), said, read_json(folder / "run.json")

    return converse


def test_an_empty_line_ends_it(talk, draw, tmp_path, monkeypatch):
    from vlmexp.predict import weights

    loaded, load = [], weights.load_model
    monkeypatch.setattr(weights, "load_model", lambda *a: loaded.append(1) or load(*a))
    red, blue = draw("red"), draw("blue")
    (tmp_path / "no.png").write_text("no image")
    (tmp_path / "it's red.png").write_bytes(red.read_bytes())
    lines, said, record = talk(
        str(tmp_path / "gone.png"), str(tmp_path), f"file://{tmp_path}/no.png", f" {red} ", "what is it?",
        f"{red} '{blue}'", "are they {{alike}}?", f"{tmp_path}/it's red.png", "what is it?", str(red), "what is it?",
        "", "never read",
    )  # fmt: skip
    assert [line["images"] for line in lines] == [
        [str(red)],
        [str(red), str(blue)],
        [f"{tmp_path}/it's red.png"],
        [str(red)],
    ]
    assert [line["question"] for line in lines] == ["what is it?", "are they {{alike}}?", "what is it?", "what is it?"]
    assert lines[0]["prediction"] == lines[2]["prediction"] == lines[3]["prediction"]
    assert "gone.png: there is no such file (looked at" in said[1]
    assert "is a folder: name an image in it" in said[2]
    assert "no.png cannot be read" in said[3]
    assert len(loaded) == 1
    assert record["status"] == "done"
    assert record["stages"]["predict"]["answered"] == 4
    assert "4 questions answered by vlmexp:tiny" in said[-4]


def test_the_end_of_the_input_and_ctrl_c_end_it_well(talk, draw):
    red = draw("red")
    assert talk()[2]["status"] == "done"
    assert len(talk(str(red), "what?")[0]) == 1
    assert len(talk(str(red))[0]) == 1
    lines, said, record = talk(str(red), "what?", str(red), lambda: os.kill(os.getpid(), signal.SIGINT))
    assert (len(lines), record["status"], record["result"]["answered"]) == (2, "done", 2)  # of all attempts
    assert "2 questions answered" in said[-4]
    with pytest.raises(BaseException, match="SIGTERM"):
        talk(str(red), lambda: os.kill(os.getpid(), signal.SIGTERM))


def test_what_one_question_cannot_be_costs_no_other(talk, draw):
    """An image that is too long as it is, in a model that takes one as small."""
    red, large = draw("red"), draw("blue", (640, 640))
    lines, said, _ = talk(str(large), "what?", str(red), "what?", overrides=("collator.max_length=100",))
    assert [line["id"] for line in lines] == [str(red)]
    assert "1 of 1 examples are longer than collator.max_length=100 tokens" in said[1]


def test_several_processes_have_one_terminal(compose, monkeypatch):
    from vlmexp.errors import UserError
    from vlmexp.predict.stage import check_predict

    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="several processes have one of them"):
        check_predict(compose("stage=predict"))
