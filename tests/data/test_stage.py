"""What stage=download says and records."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from tests.data.clips import drawn
from tests.data.test_images import encoded
from vlmexp.data.stage import download, load_split, prepared_data
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
        *(([f"dataset.name={name}"], rf"dataset.name='{name}' must be") for name in ("../esc", "a/b", "..", ".", "")),
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
