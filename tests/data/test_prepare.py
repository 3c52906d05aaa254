from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest

from vlmexp.data.examples import Examples
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.errors import UserError

COLUMNS = {"image": "picture", "question": "query", "answer": "response"}


def prepare_files(folder: Path, data: Path, **changes) -> Prepared:
    arguments = {
        "name": "squares",
        "version": "1",
        "source": "files",
        "options": {"train": str(folder / "train.jsonl"), "test": str(folder / "test.jsonl")},
        "splits": {"train": "train", "validation": None, "test": "test"},
        "validation_fraction": 0.3,
        "test_fraction": 0.1,
        "split_seed": 0,
        "columns": COLUMNS,
    }
    return prepare(data, **{**arguments, **changes})


def test_no_image_is_in_two_splits(vqa_files, tmp_path):
    prepared = prepare_files(
        vqa_files, tmp_path, splits={"train": "train", "validation": None, "test": None}, test_fraction=0.3
    )
    images = {split: set(Examples(prepared, split, COLUMNS).media_keys()) for split in ("train", "validation", "test")}
    assert all(images.values())
    assert not images["train"] & images["validation"]
    assert not images["train"] & images["test"]
    assert not images["validation"] & images["test"]
    assert sum(map(len, images.values())) == 24
    assert sum(prepared.manifest["counts"].values()) == 48
    assert "chosen by their hash with seed 0" in prepared.manifest["split_rule"]["validation"]


def test_rows_with_several_images_share_none_across_splits(vqa_files, tmp_path):
    pairs = [(k, (k + 1) % 6) for k in range(5)] + [(k, k) for k in range(6, 24)]
    rows = [{"picture": [f"train-{a}.png", f"train-{b}.png"], "query": "q?", "response": "x"} for a, b in pairs]
    (vqa_files / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare_files(vqa_files, tmp_path, splits={"train": "train"}, validation_fraction=0.3, test_fraction=0.3)
    images = [
        {path for example in Examples(prepared, split, COLUMNS) for path in example.images}
        for split in ("train", "validation", "test")
    ]
    assert all(images)
    assert len(set.union(*images)) == sum(map(len, images)) == 24


def test_a_split_that_the_source_lacks_is_taken_out_of_train_and_said(vqa_files, tmp_path):
    prepared = prepare_files(vqa_files, tmp_path, splits={"train": "train", "validation": "validation", "test": "test"})
    assert prepared.manifest["counts"]["validation"] > 0
    assert prepared.manifest["split_rule"]["validation"].startswith("0.3 of the images of 'train'")
    assert prepared.manifest["split_rule"]["test"] == "the source's 'test'"


def test_a_fraction_takes_at_least_one_image_and_leaves_one(vqa_files, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for count, expected in (
        (6, {"train": 1, "validation": 1, "test": 1}),
        (4, {"train": 1, "validation": 1, "test": 0}),
    ):
        rows = (vqa_files / "train.jsonl").read_text().splitlines(keepends=True)[:count]
        (few / "train.jsonl").write_text(
            "".join(row.replace('"picture": "', f'"picture": "{vqa_files}/') for row in rows)
        )
        prepared = prepare_files(
            few,
            tmp_path,
            options={"train": str(few / "train.jsonl")},
            splits={"train": "train"},
            validation_fraction=0.01,
        )
        assert {split: n // 2 for split, n in prepared.manifest["counts"].items()} == expected


def test_the_split_depends_on_its_seed_alone(vqa_files, tmp_path):
    def validation(folder: str, seed: int) -> list[int]:
        prepared = prepare_files(vqa_files, tmp_path / folder, split_seed=seed)
        return Examples(prepared, "validation", COLUMNS).media_keys().tolist()

    assert validation("a", 0) == validation("b", 0)
    assert validation("a", 0) != validation("a", 1)


def test_a_second_call_reuses_what_is_there(vqa_files, tmp_path):
    first = prepare_files(vqa_files, tmp_path)
    stamp = first.arrow("train").stat().st_mtime_ns
    second = prepare_files(vqa_files, tmp_path)
    assert second == first
    assert second.arrow("train").stat().st_mtime_ns == stamp


def test_damaged_data_are_prepared_again(vqa_files, tmp_path, caplog):
    first = prepare_files(vqa_files, tmp_path)
    whole = first.arrow("train").read_bytes()
    first.arrow("train").write_bytes(whole[:-10])
    with caplog.at_level(logging.WARNING):
        again = prepare_files(vqa_files, tmp_path)
    assert "preparing them again" in caplog.text
    assert again.fingerprint == first.fingerprint
    assert again.arrow("train").read_bytes() == whole


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "manifest.json").write_text(""),
        lambda folder: (folder / "manifest.json").write_text("{}"),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: (folder / "manifest.json").write_bytes((folder / "manifest.json").read_bytes()[:100]),
        lambda folder: (folder / "referenced.jsonl").unlink(),
        lambda folder: (folder / "bad.jsonl").unlink(),
        lambda folder: (folder / "media").rmdir(),
        lambda folder: os.truncate(folder / "pictures.jsonl", 40),
        lambda folder: os.truncate(folder / "train.arrow", 0),
    ],
)
def test_data_of_which_a_file_is_damaged_or_gone_are_prepared_again(damage, vqa_files, tmp_path, caplog):
    first = prepare_files(vqa_files, tmp_path)
    damage(first.folder)
    with caplog.at_level(logging.WARNING):
        assert prepare_files(vqa_files, tmp_path) == first
    assert "are damaged: preparing them again" in caplog.text
    assert prepare_files(vqa_files, tmp_path) == first


def test_another_input_file_is_another_data_set(vqa_files, tmp_path):
    first = prepare_files(vqa_files, tmp_path)
    with (vqa_files / "train.jsonl").open("a") as file:
        file.write(json.dumps({"picture": "train-0.png", "query": "new?", "response": "yes"}) + "\n")
    second = prepare_files(vqa_files, tmp_path)
    assert second.folder != first.folder
    assert sum(second.manifest["counts"].values()) == sum(first.manifest["counts"].values()) + 1


def test_a_killed_preparation_leaves_nothing_half(vqa_files, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmexp.data.prepare._write", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        prepare_files(vqa_files, tmp_path)
    assert not [path for path in tmp_path.glob("squares*") if path.is_dir() and path != vqa_files]


def test_every_named_column_must_exist(vqa_files, tmp_path):
    prepared = prepare_files(vqa_files, tmp_path)
    with pytest.raises(UserError, match=r"dataset.columns.context=contxt"):
        Examples(prepared, "train", {**COLUMNS, "context": "contxt"})
    with pytest.raises(UserError, match=r"dataset.metadata=respons: .*did you mean 'response'"):
        Examples(prepared, "train", COLUMNS, ["respons"])


def test_the_id_can_be_kept_beside_predictions(vqa_files, tmp_path):
    prepared = prepare_files(vqa_files, tmp_path)
    first = Examples(prepared, "test", COLUMNS, ["id"])[0]
    assert (first.id, first.metadata) == ("test-0", {"id": "test-0"})


def test_images_of_easyvqa_are_stored_once(data_dir, compose):
    from vlmexp.data.stage import load_split, prepared_data

    class Recorder:
        record: dict = {}  # noqa: RUF012

        def update(self, **values):
            self.record |= values

    config = compose()
    prepared = prepared_data(config, Recorder())
    assert sum(prepared.manifest["counts"].values()) == 38_575 + 9_673
    assert prepared.manifest["counts"]["test"] == 9_673
    assert 4_000 < len(list((prepared.folder / "media").iterdir())) <= 5_000
    train, test = load_split(config, prepared, "train"), load_split(config, prepared, "test")
    assert not set(train.media_keys()) & set(load_split(config, prepared, "validation").media_keys())
    first = test[0]
    assert first.images[0].is_file()
    assert first.metadata["answer_type"] in ("yes/no", "open")
    assert Recorder.record["data"]["fingerprint"] == prepared.fingerprint


def test_a_sample_is_fixed_by_its_seed(vqa_files, tmp_path):
    prepared = prepare_files(vqa_files, tmp_path)
    ids = [[e.id for e in Examples(prepared, "test", COLUMNS, limit=5, seed=seed)] for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    assert len(ids[0]) == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"source": "fils"}, "did you mean 'files'"),
        ({"options": {"train": "x.txt"}}, "ending must be one of"),
        ({"options": {"train": "missing.jsonl"}}, "there is no such file"),
        ({"options": {"train": "empty.jsonl"}}, "it has no rows"),
        ({"options": {"tran": "x.jsonl"}}, "did you mean 'train'"),
        ({"splits": {"train": "training"}}, "no such split; it has train, test"),
        ({"splits": {"train": "train", "validation": "dev"}}, "splits.validation=dev: the source has no such split"),
        ({"splits": {"test": "test"}}, "splits.train is not set"),
        ({"splits": {"train": "train", "validation": "test", "test": "test"}}, "are both 'test'.*validation=null"),
        ({"splits": {"train": "train", "test": "train"}}, "are both 'train'.*dataset.splits.test=null"),
    ],
)
def test_what_cannot_be_prepared(vqa_files, tmp_path, changes, message, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(UserError, match=message):
        prepare_files(vqa_files, tmp_path, **changes)


def test_only_examples_with_the_same_media_have_the_same_key(vqa_files, tmp_path):
    rows = [
        {"picture": picture, "query": "q?", "response": "a"} for picture in ("train-0.png", None, None, "train-0.png")
    ]
    (vqa_files / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    prepared = prepare_files(vqa_files, tmp_path, validation_fraction=0.0)
    keys = Examples(prepared, "train", COLUMNS).media_keys()
    assert keys[0] == keys[3]
    assert len(set(keys)) == 3


def test_a_missing_column_names_those_there_are(vqa_files, tmp_path):
    prepared = prepare_files(vqa_files, tmp_path)
    with pytest.raises(UserError, match=r"question=question: .* Its columns are: id, picture, query, response"):
        Examples(prepared, "train", {**COLUMNS, "question": "question"})
