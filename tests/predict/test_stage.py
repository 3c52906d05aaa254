"""stage=predict in this process, with the tiny model as it is: what is asked, what is written, what goes on."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from tests.data.clips import clip
from tests.data.test_benchmarks import picture
from tests.predict.test_submission import evalai_answers
from vlmexp.errors import UserError
from vlmexp.evaluation.journal import Journal
from vlmexp.files import read_json, read_jsonl, write_jsonl
from vlmexp.interruption import Preempted
from vlmexp.predict.stage import predict
from vlmexp.runs import Run

Ask = Callable[..., tuple[list[dict[str, Any]], dict[str, Any]]]


@pytest.fixture
def ask(compose, tmp_path) -> Ask:
    """Run the stage; the lines of the predictions, and run.json."""

    def run_stage(*overrides: str, folder: str = "run") -> tuple[list[dict[str, Any]], dict[str, Any]]:
        config = compose("stage=predict", "threads=1", *overrides)
        with Run.open(tmp_path / folder, config, []) as run:
            run.conclude(predict(config, run))
        return read_jsonl(tmp_path / folder / "predictions" / "predictions.jsonl"), read_json(run.path("run.json"))

    return run_stage


@pytest.fixture
def album(tmp_path) -> Path:
    """A folder of 20 images and a file of another kind."""
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(20):
        Image.new("RGB", (64, 64), (12 * number, 90, 200)).save(folder / f"{number:02d}.png")
    (folder / "notes.txt").touch()
    return folder


def test_each_image_of_a_folder(ask, album, tmp_path, capsys):
    lines, record = ask(f"image={album}", "question='what is it, please?'", "evaluation.batch_size=7")
    assert [line["id"] for line in lines] == [str(album / f"{number:02d}.png") for number in range(20)]
    assert {line["question"] for line in lines} == {"what is it, please?"}
    assert all(isinstance(line["prediction"], str) and line["images"] == [line["id"]] for line in lines)
    done = record["stages"]["predict"]
    assert (done["answered"], done["failed"], done["weights"]) == (20, 0, "base")
    assert (done["max_new_tokens"], done["answers"]) == (256, {"generated": 20, "taken_from_disk": 0})
    assert done["cut"] == sum(bool(line.get("cut")) for line in lines)
    assert record["fallbacks"] == ["a file is no image by the ending and left out: notes.txt."]
    with (tmp_path / "run" / "predictions" / "predictions.csv").open(newline="") as file:
        assert [row["prediction"] for row in csv.DictReader(file)] == [line["prediction"] for line in lines]
    assert "20 questions answered by vlmexp:tiny" in capsys.readouterr().out
    assert not list((tmp_path / "run").rglob("*.partial*"))


def test_stopped_in_the_middle_it_asks_nothing_twice(ask, album, tmp_path, monkeypatch):
    asked = [f"image={album}", "question=what?", "evaluation.batch_size=4", "evaluation.max_new_tokens=24"]
    whole, _ = ask(*asked, folder="whole")
    append, count = Journal.append, []

    def die(self, answers):
        append(self, answers)
        count.append(len(answers))
        if sum(count) >= 8:
            raise Preempted(15)

    with monkeypatch.context() as patch:
        patch.setattr(Journal, "append", die)
        with pytest.raises(Preempted):
            ask(*asked)
    lines, record = ask(*asked)
    assert lines == whole
    assert record["stages"]["predict"]["answers"] == {"generated": 12, "taken_from_disk": 8}
    assert ask(*asked)[1]["stages"]["predict"]["answers"] == {"generated": 12, "taken_from_disk": 8}  # it is done


def test_a_damaged_image_is_an_error_or_left_out(ask, album):
    (album / "03.png").write_bytes((album / "03.png").read_bytes()[:60])
    asked = [f"image={album}", "question=what?", "evaluation.max_new_tokens=4"]
    with pytest.raises(
        UserError, match=r"1 of 20 questions cannot be asked\. The image .*03\.png .*on_bad_sample=skip"
    ):
        ask(*asked)
    lines, record = ask(*asked, "dataset.on_bad_sample=skip")
    assert len(lines) == 20
    assert lines[-1].keys() == {"id", "error"}
    assert lines[-1]["id"].endswith("03.png")
    assert (record["result"]["answered"], record["result"]["failed"]) == (19, 1)
    (album / "04.png").write_bytes(b"no")
    with pytest.raises(UserError, match=r"2 of 20 .*more than dataset\.max_bad_share=0\.05"):
        ask(*asked, "dataset.on_bad_sample=skip", folder="more")


def test_several_images_of_one_question_and_a_video(ask, album):
    (line,), _ = ask(f"image=[{album}/00.png,{album}/01.png]", "question=what?")
    assert line["images"] == [f"{album}/00.png", f"{album}/01.png"]
    (line,), record = ask(
        f"video={clip('bikes')}", "question=what?", "collator.image_processing.max_size=64", folder="video"
    )
    assert line["videos"] == [str(clip("bikes"))]
    assert record["status"] == "done"


def test_an_answer_is_ranked(ask, album):
    asked = [f"image={album}/00.png", "question=what?", "evaluation=rank"]
    with pytest.raises(UserError, match=r"evaluation\.answers=rank has no candidates for a question that is typed"):
        ask(*asked)
    (line,), _ = ask(*asked, "evaluation.choices=[red,blue]", folder="ranked")
    assert line["prediction"] in ("red", "blue")


def test_a_conversation_of_one_question(ask, album):
    chat = ["collator=chat", "dataset=conversations", "dataset.options.train=none.jsonl"]
    (line,), _ = ask(*chat, f"image={album}/00.png", "question='a circle?'")
    assert line["question"] == "a circle?"


def test_a_question_that_the_prompt_does_not_show(ask, album):
    with pytest.raises(UserError, match=r"collator\.messages show no \{question\}"):
        ask("collator=caption", f"image={album}/00.png", "question=what?")


def official(folder: Path, names: dict[str, list[int]]) -> Path:
    """Questions and images of VQA v2's test split in the official form."""
    (folder / "test2015").mkdir(parents=True)
    for name, ids in names.items():
        for id in ids:
            Image.new("RGB", (8, 8), (id % 250, 0, 0)).save(
                folder / "test2015" / f"COCO_test2015_{id // 1000:012d}.jpg"
            )
        questions = [{"image_id": id // 1000, "question": f"is it {id}?", "question_id": id} for id in ids]
        about = {"info": {}, "task_type": "Open-Ended", "data_subtype": name, "license": {}, "questions": questions}
        (folder / f"v2_OpenEnded_mscoco_{name}_questions.json").write_text(json.dumps(about))
    return folder


def test_a_split_of_vqa_v2_without_answers(ask, tmp_path):
    ids = [1000, 1001, 262148000, 262148001, 262148002]
    root = official(tmp_path / "vqa", {"test-dev2015": ids[3:], "test2015": ids})
    source = ["dataset=vqav2", f"dataset.options.root={root}", "dataset.options.download=false"]
    for split, name, expected in (("test", "test2015", ids), ("testdev", "test-dev2015", ids[3:])):
        lines, record = ask(*source, f"predict.split={split}", folder=split)
        assert [int(line["id"]) for line in lines] == expected
        answers = evalai_answers(
            tmp_path / split / "predictions" / "submission.json", root / f"v2_OpenEnded_mscoco_{name}_questions.json"
        )
        assert [answers[int(line["id"])] for line in lines] == [line["prediction"] for line in lines]
        assert record["stages"]["predict"]["max_new_tokens"] == 16  # the data set's own
    with pytest.raises(
        UserError,
        match=r"=tets: dataset=vqav2 has no split of this name; did you mean 'test'\? It has: train, val",
    ):
        ask(*source, "predict.split=tets", folder="other")
    _, record = ask(*source, "predict.split=test", "predict.max_examples=2", folder="few")
    assert record["result"]["answered"] == 2
    assert not (tmp_path / "few" / "predictions" / "submission.json").exists()
    assert record["fallbacks"][-1].startswith("predict.max_examples leaves questions out: no file for")


@pytest.mark.parametrize(
    ("name", "row", "key", "expected"),
    [
        ("textvqa", {"question_id": 70000, "answers": [""] * 10}, "question_id", [70000, 70001, 70002]),
        ("docvqa", {"questionId": "60000", "answers": None}, "questionId", [60000, 60001, 60002]),
        ("infovqa", {"questionId": "60000", "answers": None}, "questionId", [60000, 60001, 60002]),
        ("vizwiz", {"question_id": "VizWiz_test_00000000", "answers": None, "category": None}, "image",
         [f"VizWiz_test_0000000{n}.jpg" for n in range(3)]),
    ],
)  # fmt: skip
def test_the_file_of_a_test_server(name, row, key, expected, ask, tmp_path):
    column = next(iter(row))
    ids = [row[column] + n if isinstance(row[column], int) else f"{row[column][:-1]}{n}" for n in range(3)]
    rows = [row | {column: id, "question": f"what {n}?", "image": picture(n)} for n, id in enumerate(ids)]
    folder = tmp_path / "replica"
    folder.mkdir()
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    table.to_parquet(folder / "test.parquet")
    source = [f"dataset={name}", f"dataset.options.path={folder}", "predict.split=test"]
    source += ["dataset.options.name=null"] if name in ("docvqa", "infovqa") else []
    lines, _ = ask(*source)
    written = read_json(tmp_path / "run" / "predictions" / "submission.json")
    assert written == [{key: id, "answer": line["prediction"]} for id, line in zip(expected, lines, strict=True)]
    with pytest.raises(UserError, match=r"dataset\.submission_id=idd: the test split has no column 'idd'"):
        ask(*source, "dataset.submission_id=idd", folder="other")


def test_questions_that_miss_something_come_before_weights(ask, draw, tmp_path, monkeypatch):
    rows = [{"image": str(draw("red")), "question": f"{n}?", "question_id": id} for n, id in enumerate([5, None])]
    write_jsonl(tmp_path / "test.jsonl", rows)
    monkeypatch.setattr("vlmexp.predict.weights.load_model", lambda *_: pytest.fail("weights are read"))
    source = ["dataset=files", f"dataset.options.test={tmp_path}/test.jsonl", "predict.split=test"]
    with pytest.raises(UserError, match=r"dataset\.submission_id=question_id: row 1 of the split has none"):
        ask(*source, "dataset.submission=evalai")
    write_jsonl(tmp_path / "test.jsonl", [row | {"question_id": 5, "question": ""} for row in rows[:1]] + rows[:1])
    with pytest.raises(UserError, match=r"takes an answer to every question, and 1 of the split cannot be asked"):
        ask(
            *source,
            "dataset.submission=evalai",
            "dataset.on_bad_sample=skip",
            "dataset.max_bad_share=0.9",
            folder="bad",
        )


def test_a_split_of_files_and_of_conversations_without_answers(ask, draw, tmp_path):
    image = str(draw("red"))
    write_jsonl(
        tmp_path / "test.jsonl",
        [{"id": "a", "image": image, "question": "1?"}, {"id": "b", "image": image, "question": "2?"}],
    )
    lines, record = ask("dataset=files", f"dataset.options.test={tmp_path}/test.jsonl", "predict.split=test")
    assert [(line["id"], line["question"]) for line in lines] == [("a", "1?"), ("b", "2?")]
    assert record["stages"]["predict"]["files"] == ["predictions.jsonl", "predictions.csv"]
    said = [
        {"from": "human", "value": "<image>\nwhat?"},
        {"from": "gpt", "value": "red"},
        {"from": "human", "value": "sure?"},
    ]
    write_jsonl(tmp_path / "chat.jsonl", [{"image": [image], "conversations": turns} for turns in (said, said[:2])])
    chat = [
        "collator=chat",
        "dataset=conversations",
        f"dataset.options.test={tmp_path}/chat.jsonl",
        "predict.split=test",
    ]
    lines, _ = ask(*chat, folder="chat")
    assert [line["question"] for line in lines] == ["sure?", "what?"]
