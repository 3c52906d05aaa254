"""What stage=download says and records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from tests.data.clips import drawn
from tests.data.test_duplicates import picture
from tests.data.test_images import encoded
from vlmexp.data.prepare import prepare
from vlmexp.data.stage import check_source, download, load_split, prepared_data
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run


@pytest.fixture
def mixed(compose, tmp_path):
    """Eight good rows and two bad ones; the dataset's config."""
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    (tmp_path / "half.jpg").write_bytes(encoded("JPEG")[:900])
    rows = [{"image": "good.png", "question": f"{n}?", "answer": ["a", "a", "b"]} for n in range(8)]
    rows += [{"image": "half.jpg", "question": "q?", "answer": "a"}, {"image": None, "question": "", "answer": "a"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = f"dataset.options.train={tmp_path / 'train.jsonl'}"

    def make(*overrides: str):
        return compose("dataset=files", files, "dataset.validation_fraction=0", "dataset.test_fraction=0", *overrides)

    return make


def test_what_is_left_out_is_recorded(mixed, tmp_path):
    config = mixed("dataset.on_bad_sample=skip", "dataset.max_bad_share=0.2")
    with Run.open(tmp_path / "run", config, []) as run:
        assert download(config, run) == {"counts": {"train": 8, "validation": 0, "test": 0}}
    record = read_json(tmp_path / "run" / "run.json")
    assert record["data"]["left_out"] == {"train": {"empty question": 1, "damaged": 1}}
    assert record["data"]["without_media"] == {"train": 0}
    (said,) = record["fallbacks"]
    assert said == (
        "Rows that cannot be used are left out of files (train: 1 empty question, 1 damaged); see bad.jsonl."
    )
    listed = read_jsonl(tmp_path / "run" / "bad.jsonl")
    assert sorted(row["reason"] for row in listed) == ["damaged", "empty question"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dataset.columns.question=answer"], "columns.question and dataset.columns.answer are both 'answer'"),
        (["dataset.columns.image=question"], "columns.image and dataset.columns.question are both 'question'"),
        (["dataset.columns={video: image}", "collator=video"], "columns.image and dataset.columns.video are both"),
        (["dataset.columns.context=id"], r"columns.context=id: .*paths=\{context: \"\{id\}\"\}"),
        *(([f"dataset.name={name}"], rf"dataset.name='{name}' must be") for name in ("../esc", "a/b", "..", ".")),
        (["dataset.name="], "dataset.name='' is empty"),
    ],
)
def test_columns_and_names_that_cannot_be(mixed, overrides, message):
    with pytest.raises(UserError, match=message):
        mixed(*overrides)


def test_roles_of_one_kind_may_share_a_column(mixed):
    mixed("dataset.columns={context: question, choices: answer}")


def test_an_error_is_the_default(mixed, tmp_path):
    config = mixed()
    with (
        pytest.raises(UserError, match="2 of 10 rows of files cannot be used"),
        Run.open(tmp_path / "run", config, []) as run,
    ):
        download(config, run)
    assert read_json(tmp_path / "run" / "run.json")["status"] == "failed"


def test_answers_are_sampled_for_training_only(mixed, tmp_path):
    config = mixed("dataset.on_bad_sample=skip", "dataset.max_bad_share=0.2", "dataset.train_answer=sampled", "seed=1")
    with Run.open(tmp_path / "run", config, []) as run:
        prepared = prepared_data(config, run)
        assert {example.answer for example in load_split(config, prepared, "train")} == {"a", "b"}
        config.dataset.train_answer = "most_common"
        assert {example.answer for example in load_split(config, prepared, "train")} == {"a"}


def test_videos_are_checked_with_the_library_of_the_config(compose, tmp_path):
    pytest.importorskip("decord")
    row = {"clip": str(drawn(tmp_path / "clip.mp4", 3)), "question": "q?", "answer": "a"}
    (tmp_path / "train.jsonl").write_text(json.dumps(row) + "\n")
    config = compose(
        *("dataset=files", f"dataset.options.train={tmp_path / 'train.jsonl'}", "collator=video"),
        *("dataset.validation_fraction=0", "dataset.test_fraction=0", "dataset.columns={image: null, video: clip}"),
        "collator.video_processing.frame_extraction.library=decord",
    )
    with Run.open(tmp_path / "run", config, []) as run:
        assert prepared_data(config, run).manifest["request"]["video_library"] == "decord"


@pytest.fixture
def twice(tmp_path):
    """A train file of four pictures, and a test file with a copy of one, a smaller copy of another, and a new one."""
    names = {"train": ["0.png", "1.png", "2.png", "3.png"], "test": ["copy.bmp", "small.jpg", "9.png"]}
    for number, name in [*enumerate(names["train"]), (0, "copy.bmp"), (9, "9.png")]:
        picture(number).save(tmp_path / name)
    picture(1).resize((60, 60)).save(tmp_path / "small.jpg", quality=90)
    for split, images in names.items():
        rows = [{"image": image, "question": f"{image}?", "answer": "a"} for image in images]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = [f"dataset.options.{split}={tmp_path}/{split}.jsonl" for split in names]
    return ["dataset=files", "dataset.validation_fraction=0", *files]


def test_duplicates_are_said_and_kept_with_the_run(compose, twice, tmp_path, capsys):
    config = compose(*twice)
    with Run.open(tmp_path / "run", config, []) as run:
        download(config, run)
    record = read_json(tmp_path / "run" / "run.json")
    assert record["fallbacks"] == [
        "1 of 3 test questions are about pictures of the train split, 0 of them the same questions. See "
        "duplicates.jsonl; dataset.on_duplicates=drop_from_train leaves none in train."
    ]
    (line,) = read_jsonl(tmp_path / "run" / "duplicates.jsonl")
    assert (line["id"], line["path"], line["other_id"]) == ("test-0", str(tmp_path / "copy.bmp"), "train-0")
    assert record["data"]["duplicates"] == {"test": {"train": {"rows": 1, "same_question": 0}}}
    near = {"pictures": 1, "example": [str(tmp_path / "small.jpg"), str(tmp_path / "1.png")]}
    assert record["data"]["near_duplicates"] == {"test": {"train": near}}
    said = "  1 pictures of the test split look like one of the train split without being the same, for example "
    assert said in capsys.readouterr().out


def test_what_is_converted_is_said(compose, tmp_path):
    (tmp_path / "train.csv").write_text("question,answer\n1?,\"['a', 'b']\"\n")
    options = ["dataset=files", f"dataset.options.train={tmp_path}/train.csv", "dataset.columns.image=null"]
    config = compose(*options, "dataset.validation_fraction=0", "dataset.test_fraction=0")
    with Run.open(tmp_path / "run", config, []) as run:
        prepared_data(config, run)
    record = read_json(tmp_path / "run" / "run.json")
    assert record["fallbacks"] == record["data"]["converted"]
    assert record["fallbacks"][0].startswith("1 texts of the column 'answer' are lists of answers")


def test_an_evaluation_needs_no_train_split(compose, twice, tmp_path):
    config = compose(*twice, "dataset.options.train=null", "stage=eval_base")
    with Run.open(tmp_path / "run", config, []) as run:
        prepared = prepared_data(config, run)
        assert prepared.manifest["counts"] == {"train": 0, "validation": 0, "test": 3}
        assert prepared.manifest["split_rule"]["validation"] == "none, as there is no train split to take it from"
        assert [example.id for example in load_split(config, prepared, "test")] == ["test-0", "test-1", "test-2"]
        with pytest.raises(UserError, match=r"has no train split, it has test \(3 rows\): name one of the source's"):
            load_split(config, prepared, "train")
        config.stage = "train"  # as a stage of one's own, or a source that is known when it is read only
        for _ in range(2):
            with pytest.raises(UserError, match=r"There is no train split to train on: .* \(test\)\. Set it, or"):
                prepared_data(config, run)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["stage=train", "dataset.options.test=t.jsonl"], "stage=train needs a train split, and .* has only test: set"),
        (["dataset.options.test=t.jsonl"], "stage=pipeline needs a train split"),
        (["stage=eval_base"], r"dataset\.options\.train has no default: .* To evaluate alone the latter is enough"),
    ],
)
def test_files_that_a_stage_needs(overrides, message, compose):
    with pytest.raises(UserError, match=message):
        compose("dataset=files", *overrides)


def rows_of_mine(path: str, download: bool = True, cache_dir: str | None = None) -> dict:
    """A source of one's own, with options that decide how its rows get here."""
    READ.append(download)
    return {"train": [{"question": "q?", "answer": path}]}


READ: list[bool] = []


def test_options_that_change_no_data_prepare_none_again(tmp_path):
    def folder(**options: object) -> Path:
        return prepare(
            tmp_path, "mine", "1", "tests.data.test_stage.rows_of_mine", options, {"train": "train"}, 0.0, 0.0, 0,
            {"question": "question", "answer": "answer"},
        ).folder  # fmt: skip

    assert folder(path="a") == folder(path="a", download=False) == folder(path="a", cache_dir="x")
    assert folder(path="a") != folder(path="b")
    assert READ == [True, True]


@pytest.mark.parametrize(
    ("ending", "rows", "is_told"), [("csv", 2, True), ("jsonl", 2, True), ("csv", 500, True), ("jsonl", 500, False)]
)
def test_a_column_that_is_not_there_is_told_before_the_rows_are_read(compose, tmp_path, ending, rows, is_told):
    path = tmp_path / f"train.{ending}"
    row = {"image": "a.png", "question": "q?", "answer": "a"}
    with path.open("w") as file:
        if ending == "csv":
            file.write("image,question,answer\n" + "a.png,q?,a\n" * rows)
        else:
            file.write(f"{json.dumps(row)}\n" * rows)
    config = compose(
        "stage=train", "dataset=files", f"dataset.options.train={path}", "dataset.test_fraction=0.1",
        "dataset.metadata=[kind]",
    )  # fmt: skip
    if is_told:
        with pytest.raises(UserError, match=r"dataset.metadata=kind: the train split has no column 'kind'"):
            check_source(config)
    else:
        check_source(config)  # a later row may have it


def test_an_evaluation_of_a_split_that_there_will_not_be(compose, tmp_path):
    (tmp_path / "train.csv").write_text("image,question,answer\na.png,q?,a\n")
    options = ["dataset=files", f"dataset.options.train={tmp_path}/train.csv", "dataset.test_fraction=0"]
    with pytest.raises(UserError, match=r"evaluation.split=test: .*set dataset.test_fraction above 0"):
        check_source(compose("stage=eval_base", *options))
    check_source(compose("stage=train", *options))
