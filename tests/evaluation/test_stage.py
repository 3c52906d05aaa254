"""An evaluation that ends before its time goes on where it was, and what it says does not depend on that."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Disk, cli_environment
from vlmexp.config import Config
from vlmexp.data.stage import prepared_data
from vlmexp.errors import UserError
from vlmexp.evaluation.answers import identity_of
from vlmexp.evaluation.stage import eval_base, evaluate_model
from vlmexp.evaluation.suite import FINETUNED
from vlmexp.files import read_json, read_jsonl, write_jsonl
from vlmexp.interruption import Preempted
from vlmexp.runs import Run
from vlmexp.storage import StorageError

JOB = [
    "stage=eval_base", "threads=1", "evaluation.batch_size=4", "evaluation.max_new_tokens=24",
    "dataset.max_examples={train: 300, validation: 8, test: 60}",
]  # fmt: skip
FILES = ("base_vlm_model_evaluation.json", "base_vlm_model_predictions.jsonl")


@pytest.fixture
def evaluate(compose, tmp_path) -> Callable[..., dict]:
    """Evaluate the base model in a folder; the record of the stage."""

    def run_stage(folder: str, *overrides: str) -> dict:
        with Run.open(tmp_path / folder, compose(*JOB, *overrides), []) as run:
            eval_base(compose(*JOB, *overrides), run)
            return dict(run.record["stages"]["eval_base"])

    return run_stage


def stored(folder: Path) -> tuple[dict, list[dict]]:
    """The evaluation and the predictions of a finished run."""
    return read_json(folder / "evaluation" / FILES[0]), read_jsonl(folder / "evaluation" / FILES[1])


def lines(folder: Path, name: str = "*.partial-rank*") -> int:
    """Answers on disk of an evaluation that is not finished."""
    return sum(len(read_jsonl(path)[1:]) for path in folder.glob(f"evaluation/{name}.jsonl"))


def send_when(condition: Callable[[], bool], number: signal.Signals) -> threading.Thread:
    def watch() -> None:
        while not condition():
            time.sleep(0.001)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_told_to_stop_it_ends_a_batch_and_goes_on_from_there(evaluate, tmp_path):
    whole = evaluate("whole")
    assert whole["answers"] == {"generated": 64, "taken_from_disk": 0}

    stopped, counts = tmp_path / "stopped", []
    for least in (1, 30):  # twice, and each time with another number of ranks than before
        watcher = send_when(lambda least=least: stopped.exists() and lines(stopped) >= least, signal.SIGTERM)
        with pytest.raises(Preempted):
            evaluate("stopped")
        watcher.join()
        counts.append(lines(stopped))
        assert read_json(stopped / "run.json")["status"] == "preempted"
        first = stopped / "evaluation" / "base_vlm_model_predictions.partial-rank0.jsonl"
        first.rename(first.with_name("base_vlm_model_predictions.partial-rank5.jsonl"))
    assert 0 < counts[0] < counts[1] < 60
    assert all(count % 4 == 0 for count in counts)

    done = evaluate("stopped")
    assert done["answers"] == {"generated": 64 - counts[1], "taken_from_disk": counts[1]}
    for name in FILES:
        assert (stopped / "evaluation" / name).read_bytes() == (tmp_path / "whole" / "evaluation" / name).read_bytes()
    assert sorted(path.name for path in (stopped / "evaluation").iterdir()) == sorted(FILES)


def test_a_disk_that_fills_up_costs_no_answer(disk: Disk, evaluate, tmp_path):
    evaluate("whole")
    disk.mount("1m")
    run = disk.folder / "run"

    def fill() -> None:
        while not (run.exists() and lines(run) >= 8):
            time.sleep(0.001)
        disk.fill()

    filler = threading.Thread(target=fill, daemon=True)
    filler.start()
    with pytest.raises(StorageError, match="cannot be written: the disk is full"):
        evaluate("disk/run")
    filler.join()
    record, kept = read_json(run / "run.json"), lines(run)
    assert record["status"] == "failed"
    assert "the disk is full" in record["error"]
    (disk.folder / "ballast").unlink()
    assert evaluate("disk/run")["answers"] == {"generated": 64 - kept, "taken_from_disk": kept}
    for name in FILES:
        assert (run / "evaluation" / name).read_bytes() == (tmp_path / "whole" / "evaluation" / name).read_bytes()


@pytest.fixture
def moody(tmp_path, monkeypatch) -> str:
    """A metric that fails until there is a file `calm` beside it."""
    (tmp_path / "moody.py").write_text(
        "from pathlib import Path\n"
        "def metric(prediction, answers):\n"
        "    if prediction and not Path(__file__).with_name('calm').exists():\n"
        "        raise RuntimeError('not today')\n"
        "    return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "moody", raising=False)
    return "evaluation.metrics=[moody.metric]"


def test_an_error_after_the_answers_costs_none_of_them(evaluate, moody, tmp_path):
    with pytest.raises(UserError, match=r"moody\.metric fails on example test-\d+: RuntimeError: not today"):
        evaluate("run", moody)
    (tmp_path / "calm").touch()
    done = evaluate("run", moody)
    assert done["metrics"] == {"metric": 1.0}
    assert done["answers"] == {"generated": 4, "taken_from_disk": 60}  # the four asked alone come after the metrics


def test_an_answer_that_its_batch_has_changed_is_reported(evaluate, moody, tmp_path):
    """An answer on disk that the model does not give stands for one that it gives in a batch only."""
    with pytest.raises(UserError, match=r"moody\.metric fails on example test-\d+: RuntimeError: not today"):
        evaluate("run", moody, "evaluation.invariance_examples=60")
    path = tmp_path / "run" / "evaluation" / "base_vlm_model_predictions.partial-rank0.jsonl"
    header, first, *rest = read_jsonl(path)
    write_jsonl(path, [header, {**first, "prediction": "another answer"}, *rest])
    (tmp_path / "calm").touch()
    evaluate("run", moody, "evaluation.invariance_examples=60")
    difference = {"id": first["id"], "alone": first["prediction"], "in_batch": "another answer"}
    result, _ = stored(tmp_path / "run")
    assert result["batch_invariance"] == {"n": 60, "different": 1, "differences": [difference]}
    said = (tmp_path / "run" / "train.log").read_text()
    assert f"1 of 60 answers are other ones when asked alone (example {first['id']}: " in said


def test_answers_are_ranked(evaluate, tmp_path):
    evaluate("run", "evaluation.answers=rank")
    result, rows = stored(tmp_path / "run")
    assert result["ranking"] == {
        "choices": "the answers of the train split", "n_choices": 13, "of": 13, "per_token": False, "answerable": 60,
    }  # fmt: skip
    assert result["batch_invariance"]["different"] == 0
    for row in rows:
        assert row["ranking"][0]["answer"] == row["prediction"]
        values = [entry["log_likelihood"] for entry in row["ranking"]]
        assert len(values) == 5
        assert values == sorted(values, reverse=True)
    assert "generation" not in result


def test_one_s_own_choices_are_ranked_without_shared_prompts(evaluate, tmp_path):
    options = ["evaluation.answers=rank", "evaluation.choices=[yes,no,red]"]
    evaluate("shared", *options)
    evaluate("separate", *options, "collator.share_images=never")
    (result, shared), (_, separate) = stored(tmp_path / "shared"), stored(tmp_path / "separate")
    assert [row["prediction"] for row in shared] == [row["prediction"] for row in separate]
    assert {row["prediction"] for row in shared} <= {"yes", "no", "red"}
    assert result["ranking"]["choices"] == "evaluation.choices"
    assert result["ranking"]["answerable"] == sum(row["answers"][0] in ("yes", "no", "red") for row in shared) < 60
    assert any("a prompt of its own" in text for text in read_json(tmp_path / "separate" / "run.json")["fallbacks"])
    assert not read_json(tmp_path / "shared" / "run.json")["fallbacks"]


def test_the_choices_of_the_row_are_ranked(evaluate, tmp_path, draw):
    colors = ["red", "blue", "black"]
    rows = [
        {
            "image": str(draw(colors[k % 3])),
            "question": "what color?",
            "answer": colors[k % 3],
            "of": colors[: 2 + k % 2],
        }
        for k in range(6)
    ]
    for split in ("train", "test"):
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    data = [f"dataset.options.{split}={tmp_path}/{split}.jsonl" for split in ("train", "test")]
    evaluate("run", "dataset=files", "evaluation.answers=rank", "dataset.columns.choices=of", *data)
    result, answers = stored(tmp_path / "run")
    assert result["ranking"] == {"choices": "the column of", "per_token": False, "answerable": 5}
    ranked = [{entry["answer"] for entry in row["ranking"]} for row in answers]
    assert ranked == [set(row["of"]) for row in rows]


@pytest.fixture
def evaluate_finetuned(compose, tmp_path, model, processor):
    """Evaluate the tiny model as if it were fine-tuned on test rows; (the evaluation, what run.json notes)."""

    def run_stage(rows: list[dict], *overrides: str) -> tuple[dict, list[str]]:
        write_jsonl(tmp_path / "test.jsonl", rows)
        file = f"dataset.options.test={tmp_path}/test.jsonl"
        config = compose("dataset=files", "stage=eval_finetuned", file, *overrides)
        with Run.open(tmp_path / "run", config, []) as run:
            evaluate_model(config, run, prepared_data(config, run), model, processor, FINETUNED, ["weights"])
            return read_json(run.path("evaluation", f"{FINETUNED}_evaluation.json")), run.record["fallbacks"]

    return run_stage


def test_only_questions_about_other_images_count_as_blind(evaluate_finetuned, draw):
    red, blue = str(draw("red")), str(draw("blue"))
    rows = [{"image": images, "question": "?", "answer": "red"} for images in ([red], [blue], [red, blue])]
    result, notes = evaluate_finetuned(rows)
    assert (result["n"], result["blind"]["n"]) == (3, 2)
    assert notes == [
        "evaluation.blind=shuffle: 1 of 3 questions have no other images to be shown, and do not count there."
    ]


def test_without_other_images_there_is_no_blind_score(evaluate_finetuned, draw):
    rows = [{"image": str(draw("red")), "question": f"{k}?", "answer": "red"} for k in range(3)]
    result, notes = evaluate_finetuned(rows)
    assert "blind" not in result
    assert "3 of 3 questions have no other images" in notes[0]


def test_few_answers_a_question_are_told_once(evaluate_finetuned, draw):
    answers = [["a"], ["a", "a"], ["a", "b", "c"], ["a"] * 10]
    rows = [{"image": str(draw("red")), "question": f"{k}?", "answer": a} for k, a in enumerate(answers)]
    _, notes = evaluate_finetuned(rows, "evaluation.blind=none", "evaluation.metrics=[vqa_accuracy]")
    assert len(notes) == 1
    assert "2 of 4 questions have 2 to 9 answers" in notes[0]
    assert "equals all of 2 answers gets 33 %" in notes[0]


@pytest.fixture
def described(draw, tmp_path) -> list[str]:
    """Options of data whose longest answers take 24 tokens: 21 words, two of which are spelled in two, and an end."""
    words = "red circle on the left side of a big white image".split()
    for split, lengths in (("train", (1, 21)), ("test", (2, 4))):
        rows = [
            {"image": str(draw("red")), "question": f"{k}?", "answer": ["a", " ".join((words * 2)[:length])]}
            for k, length in enumerate(lengths)
        ]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    return ["dataset=files", *(f"dataset.options.{split}={tmp_path}/{split}.jsonl" for split in ("train", "test"))]


def test_answers_are_as_long_as_the_longest_accepted_one(compose, described, tmp_path):
    def generation(folder: str, *overrides: str) -> dict:
        config = compose("stage=eval_base", *described, *overrides)
        with Run.open(tmp_path / folder, config, []) as run:
            eval_base(config, run)
        found = stored(tmp_path / folder)[0]["generation"]
        assert found.pop("reasoning_tags") == ["think", "analysis"]
        return found

    assert generation("found") == {
        "max_new_tokens": 32, "do_sample": False,
        "max_new_tokens_from": "the longest accepted answer of test and train takes 24 tokens",
    }  # fmt: skip
    assert generation("least", "evaluation.generation.min_new_tokens=33")["max_new_tokens"] == 33
    assert generation("set", "dataset.max_new_tokens=3") == {
        "max_new_tokens": 3, "do_sample": False, "max_new_tokens_from": "dataset.max_new_tokens",
    }  # fmt: skip
    result, rows = stored(tmp_path / "set")
    assert result["cut"] == 2
    assert [row["cut"] for row in rows] == [True, True]
    assert not any("cut" in row for row in stored(tmp_path / "found")[1])
    assert stored(tmp_path / "found")[0]["cut"] == 0


def test_answers_of_another_length_are_not_taken_from_disk(model):
    config = Config()
    one, other = (identity_of(config, model, ["weights"], "data", tokens) for tokens in (16, 30))
    assert one != other


def test_options_that_cannot_be_are_refused_before_weights_are_read(compose, tmp_path, monkeypatch):
    config = compose(*JOB, "evaluation.generation.temperature=0.7")
    monkeypatch.setattr("vlmexp.evaluation.stage.load_model", pytest.fail)
    with (
        Run.open(tmp_path / "run", config, []) as run,
        pytest.raises(UserError, match=r"changes nothing without evaluation\.generation\.do_sample=true"),
    ):
        eval_base(config, run)


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_it_goes_on_where_it_was(ranks, evaluate, tmp_path, data_dir):
    evaluate("whole", "evaluation.batch_size=2")
    run = tmp_path / "killed"
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "vlmexp", *JOB, "evaluation.batch_size=2", f"hydra.run.dir={run}"]
    process = subprocess.Popen(command, cwd=tmp_path, env=cli_environment(data_dir), stderr=subprocess.DEVNULL)
    while not all(lines(run, f"base_vlm_model_predictions.partial-rank{rank}") for rank in range(ranks)):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.001)
    os.kill(read_json(run / "run.json")["attempts"][-1]["pid"], signal.SIGKILL)  # rank 0; torchrun ends the others
    assert process.wait() == (-signal.SIGKILL if ranks == 1 else 1)
    before = lines(run)
    assert 0 < before < 60
    assert read_json(run / "run.json")["status"] == "running"
    done = evaluate("killed", "evaluation.batch_size=2")
    assert done["answers"] == {"generated": 64 - before, "taken_from_disk": before}
    for name in FILES:
        assert (run / "evaluation" / name).read_bytes() == (tmp_path / "whole" / "evaluation" / name).read_bytes()
