"""Local folders as data sets: what `save_to_disk` wrote, and images beside their metadata."""

from __future__ import annotations

import csv
import json
import textwrap
from pathlib import Path

import datasets
import pytest
from PIL import Image

from vlmexp.data.examples import Examples
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.errors import UserError

COLUMNS = {"image": "image", "question": "question", "answer": "answer"}
COLORS = ("red", "green", "blue", "black")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def prepared(tmp_path: Path, folder: Path, splits: tuple[str, ...]) -> Prepared:
    wanted = {split: split if split in splits else None for split in ("train", "validation", "test")}
    return prepare(tmp_path / "data", "folder", "1", "hub", {"path": str(folder)}, wanted, 0.25, 0.25, 0, COLUMNS)


def asked(prepared: Prepared, split: str) -> dict[str, tuple[int, int, int]]:
    """Question -> the colour of its image."""
    found = {}
    for example in Examples(prepared, split, COLUMNS):
        with Image.open(example.images[0]) as image:
            found[example.fields["question"]] = image.convert("RGB").getpixel((0, 0))
    return found


EXPECTED = {"red?": (255, 0, 0), "green?": (0, 128, 0), "blue?": (0, 0, 255), "black?": (0, 0, 0)}


def table(draw) -> datasets.Dataset:
    rows = {
        "image": [str(draw(color)) for color in COLORS],
        "question": [f"{color}?" for color in COLORS],
        "answer": list(COLORS),
    }
    return datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())


def test_a_saved_data_set_is_all_train(tmp_path, draw):
    table(draw).save_to_disk(tmp_path / "saved")
    data = prepared(tmp_path, tmp_path / "saved", ("train",))
    assert data.manifest["counts"] == {"train": 2, "validation": 1, "test": 1}
    assert asked(data, "train") | asked(data, "validation") | asked(data, "test") == EXPECTED


def test_saved_splits_are_kept(tmp_path, draw):
    rows = table(draw)
    datasets.DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "saved")
    data = prepared(tmp_path, tmp_path / "saved", ("train", "test"))
    assert data.manifest["counts"] == {"train": 3, "validation": 1, "test": 1}
    assert asked(data, "test") == {"green?": (0, 128, 0)}


def test_a_saved_split_without_rows_is_taken_out_of_train(tmp_path, draw):
    rows = table(draw)
    datasets.DatasetDict({"train": rows, "test": rows.select([])}).save_to_disk(tmp_path / "saved")
    data = prepared(tmp_path, tmp_path / "saved", ("train", "test"))
    assert data.manifest["counts"] == {"train": 2, "validation": 1, "test": 1}
    assert data.manifest["split_rule"]["test"].startswith("0.25 of the images of 'train'")


def test_only_the_splits_that_are_named_are_read(tmp_path, draw):
    """Beside one that is no table at all; what the card tells of the one that is named still holds."""
    folder = tmp_path / "published"
    folder.mkdir()
    table(draw).to_parquet(folder / "val.parquet")
    (folder / "train.parquet").write_bytes(b"no table")
    card = """
        ---
        configs:
        - config_name: default
          data_files: [{split: train, path: train.parquet}, {split: val, path: val.parquet}]
        dataset_info:
          splits: [{name: train, num_bytes: 9, num_examples: 9}, {name: val, num_bytes: 9, num_examples: 4}]
        ---
    """
    (folder / "README.md").write_text(textwrap.dedent(card).lstrip())
    data = prepare_test(tmp_path, folder, "val")
    assert asked(data, "test") == EXPECTED
    with pytest.raises(UserError, match=r"published could not be loaded: .*"):
        prepare_test(tmp_path, folder, "train")
    (folder / "README.md").write_text(textwrap.dedent(card).lstrip().replace("num_examples: 4", "num_examples: 5"))
    with pytest.raises(UserError, match=r"published could not be loaded: NonMatchingSplitsSizesError"):
        prepare_test(tmp_path, folder, "val")


def prepare_test(tmp_path: Path, folder: Path, split: str) -> Prepared:
    wanted = {"train": None, "validation": None, "test": split}
    options = {"path": str(folder)}
    return prepare(tmp_path / "data", "one", "1", "hub", options, wanted, 0, 0, 0, COLUMNS, needs_train=False)


def test_classes_are_trained_on_by_name(tmp_path):
    names = datasets.ClassLabel(names=["no", "yes"])
    features = {"question": datasets.Value("string"), "answer": names, "answers": datasets.List(names)}
    rows = {"question": ["one?", "two?", "none?"], "answer": [1, 0, -1], "answers": [[1, 1], [0], [1, 0]]}
    datasets.Dataset.from_dict(rows, datasets.Features(features)).save_to_disk(tmp_path / "saved")
    columns = {"question": "question", "answer": "answers"}
    data = prepare(
        tmp_path / "data", "folder", "1", "hub", {"path": str(tmp_path / "saved")}, {"train": "train"}, 0, 0, 0, columns
    )
    found = Examples(data, "train", columns, ["answer"])
    assert [example.answers for example in found] == [("yes", "yes"), ("no",), ("yes", "no")]
    assert [example.metadata["answer"] for example in found] == ["yes", "no", None]


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_a_folder_of_images_with_metadata(tmp_path, draw, ending):
    for split, colors in (("train", COLORS), ("test", COLORS[1:2])):
        folder = tmp_path / "images" / split
        folder.mkdir(parents=True)
        rows = [{"file_name": f"{color}.png", "question": f"{color}?", "answer": color} for color in colors]
        for color in colors:
            draw(color).replace(folder / f"{color}.png")
        with (folder / f"metadata.{ending}").open("w", newline="") as file:
            if ending == "csv":
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    data = prepared(tmp_path, tmp_path / "images", ("train", "test"))
    assert data.manifest["counts"] == {"train": 3, "validation": 1, "test": 1}
    assert asked(data, "train") | asked(data, "validation") == EXPECTED
    assert asked(data, "test") == {"green?": (0, 128, 0)}
