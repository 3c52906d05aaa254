"""Every benchmark from a table in its published schema on disk to its scores."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from tests.conftest import example
from tests.data.clips import clip
from tests.golden.__main__ import BENCHMARKS
from tests.models.families import FAMILIES
from vlmexp.config import used_columns
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.data.refcoco import refcoco_rows
from vlmexp.data.shaping import joined, shaped
from vlmexp.data.stage import load_split
from vlmexp.errors import UserError
from vlmexp.evaluation.row import row_of
from vlmexp.evaluation.score import summarise
from vlmexp.parts import build_collator

GOLDEN = Path(__file__).parent.parent / "golden" / "benchmarks"
ROWS = 12
CONFIGS = {
    "gqa": "testdev_balanced_instructions",
    "docvqa": "DocVQA",
    "infovqa": "InfographicVQA",
    "mmbench": "en",
    "scienceqa": "ScienceQA-FULL",
    "scienceqa_img": "ScienceQA-IMG",
}


def picture(number: int, size: tuple[int, int] = (40, 30)) -> dict[str, Any]:
    """A pattern of its own for each number."""
    buffer, noise = io.BytesIO(), np.random.default_rng(number).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def ascii_only(row: dict[str, Any]) -> bool:
    """Whether a row of ChartQA is none of those that are judged in another way on purpose."""
    return (row["prediction"] + row["answer"]).isascii() and bool(row["answer"].strip())


def golden_rows(name: str) -> list[dict[str, Any]]:
    """The golden rows of a benchmark, of which the first are those of a replica."""
    lines = (GOLDEN / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [row for row in rows if ascii_only(row)] if name == "chartqa" else rows


def published(name: str, count: int = ROWS) -> list[dict[str, Any]]:
    """The first golden rows as they are published: with pictures, and without what was made of them."""
    made = ("prompt", "prediction", "scores", "scores_release_0_7_3", "chat_content", "doc", "ref_index")
    kept = []
    for number, row in enumerate(golden_rows(name)[:count]):
        new = {key: value for key, value in row.items() if key not in made and not key.startswith(("_", "image_"))}
        size = (row.get("image_width", 40), row.get("image_height", 30))
        if name == "mmmu":
            new |= {f"image_{k}": picture(100 * k + number) if k <= row["_n_images"] else None for k in range(1, 8)}
        elif name == "seedbench":
            new["image"] = [picture(number)]
        elif "image" in row:
            new["image"] = picture(number, size) if row.get("_has_image", True) else None
        if name == "refcoco_bbox_rec":
            new["answer"] = [row["doc"]["answer"]]
        kept.append(new)
    return kept


def written(name: str, dataset: str, split: str, folder: Path, count: int = ROWS) -> Path:
    """A replica on disk, as parquet with the types of images, its configurations named as the Hub's."""
    rows = published(name, count)
    config = CONFIGS.get(dataset, "default")
    tables = {config: rows}
    if dataset == "gqa":
        tables = {
            config: [{key: value for key, value in row.items() if key != "image"} for row in rows],
            "testdev_balanced_images": [
                {"id": row["imageId"], "image": row["image"]} for row in {r["imageId"]: r for r in rows}.values()
            ],
        }
    folder.mkdir()
    lines = ["---", "configs:"]
    for title, table in tables.items():
        found = datasets.Dataset.from_list(table)
        for column in found.column_names:
            if column == "image" or (column.startswith("image_") and column[6:].isdecimal()):
                kind = datasets.List(datasets.Image()) if dataset == "seedbench" else datasets.Image()
                found = found.cast_column(column, kind)
        found.to_parquet(folder / f"{title}.parquet")
        lines += [f"- config_name: {title}", "  data_files:", f"  - split: {split}", f"    path: {title}.parquet"]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    return folder


def prepared_from(config: Any, root: Path) -> Prepared:
    dataset = config.dataset
    return prepare(
        root, dataset.name, dataset.version, dataset.source, dataset.options, dataset.splits, 0.0, 0.0, 0,
        used_columns(config), required=dataset.required, needs_train=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "vqav2"])
def test_a_replica_is_scored_as_published(name, tmp_path, compose):
    benchmark = BENCHMARKS[name]
    choice = [f"dataset={benchmark.dataset}", "stage=eval_base"]
    split = compose(*choice).dataset.splits["test"]
    folder = written(name, benchmark.dataset, split, tmp_path / "replica")
    config = compose(*choice, f"dataset.options.path={folder}")
    examples = list(load_split(config, prepared_from(config, tmp_path / "data"), "test"))
    golden = golden_rows(name)[:ROWS]
    if name == "ok_vqa":  # a row without answers is a bad one
        golden = [row for row in golden if row["answers"]]
    assert len(examples) == len(golden)
    predictions = [row["prediction"].strip() for row in golden]
    rows = [row_of(one) for one in examples]
    scores, summary = summarise(predictions, rows, config.dataset.metrics, config.dataset.metadata)
    for row, found in zip(golden, scores, strict=True):
        there = row.get("scores_release_0_7_3", row["scores"])
        for theirs, ours in benchmark.scores.items():
            if theirs in there and len(row.get("answers") or "ab") > 1:
                wanted = there[theirs] or 0.0  # a letter drawn at random is wrong
                assert found[ours] == pytest.approx(wanted, abs=benchmark.close), row["prediction"]
    assert summary["n"] == len(golden)
    assert all(one.images for one in examples) or name == "scienceqa"


def test_the_captions_of_a_photograph(tmp_path, compose):
    captions = [["a dog runs", "the dog is running"], ["a red bus", "a bus on a road"]]
    table = datasets.Dataset.from_list([{"image": picture(i), "answer": given} for i, given in enumerate(captions)])
    (tmp_path / "replica").mkdir()
    table.cast_column("image", datasets.Image()).to_parquet(tmp_path / "replica" / "val.parquet")
    config = compose(
        "dataset=coco_captions", "stage=eval_base", f"dataset.options.path={tmp_path / 'replica'}",
        "dataset.splits.test=validation",
    )  # fmt: skip
    rows = [row_of(one) for one in load_split(config, prepared_from(config, tmp_path / "data"), "test")]
    assert [list(row.answers) for row in rows] == captions
    _, summary = summarise(["a dog runs", "a bus"], rows, config.dataset.metrics)
    assert summary["metrics"]["coco_bleu1"] == pytest.approx(0.8187307, abs=1e-6)  # 5 of 5 words, of 6: exp(1 - 6/5)


def test_both_kinds_of_questions_that_need_knowledge(tmp_path, compose):
    """A question that is hard without its choices is asked with them alone."""
    rows = [
        {"question_id": "a", "image": picture(1), "question": "what flies?", "choices": ["a cow", "a kite"],
         "correct_choice_idx": 1, "direct_answers": "['kite', 'kite', 'Kite', 'bird']",
         "difficult_direct_answer": False},
        {"question_id": "b", "image": picture(2), "question": "what is it?", "choices": ["a cow", "a dog"],
         "correct_choice_idx": 0, "direct_answers": "['cow', 'ox', 'bull', 'calf']", "difficult_direct_answer": True},
    ]  # fmt: skip
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    (tmp_path / "replica").mkdir()
    table.to_parquet(tmp_path / "replica" / "validation.parquet")

    def scored(dataset: str, *predictions: str) -> dict[str, float]:
        path = f"dataset.options.path={tmp_path / 'replica'}"
        config = compose(f"dataset={dataset}", "stage=eval_base", path)
        found = [row_of(one) for one in load_split(config, prepared_from(config, tmp_path / "data"), "test")]
        return summarise(predictions, found, config.dataset.metrics)[1]["metrics"]

    assert scored("aokvqa", "B", "B") == {"multiple_choice_accuracy": 0.5}
    assert scored("aokvqa_direct", "Kite ")["aokvqa_direct_accuracy"] == 1.0
    assert scored("aokvqa_direct", "bird")["aokvqa_direct_accuracy"] == pytest.approx(1 / 3)
    assert scored("aokvqa_direct", "a kite")["aokvqa_direct_accuracy"] == 0.0


def test_regions_to_be_trained_on_and_said_in_a_model_s_own_notation(tmp_path, compose):
    """A row for each text of a region; a perfect answer of a family is right in pixels of the picture."""
    (tmp_path / "replica").mkdir()
    for split, boxes in (("val", [[10.5, 20.0, 40.0, 60.0]] * 3), ("testA", [[0.0, 30.0, 64.0, 50.0]])):
        rows = [
            {"question_id": f"{split}-{number}", "image": picture(number, (120, 90)), "question": "published",
             "answer": ["left man", "man in red"], "bbox": box, "iscrowd": 0, "file_name": "x.jpg"}
            for number, box in enumerate(boxes)
        ]  # fmt: skip
        table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        table.cast_column("bbox", datasets.List(datasets.Value("float32"))).to_parquet(
            tmp_path / "replica" / f"{split}.parquet"
        )
    lines = ["---", "configs:", "- config_name: default", "  data_files:"]
    lines += [f"  - split: {split}\n    path: {split}.parquet" for split in ("val", "testA")]
    (tmp_path / "replica" / "README.md").write_text("\n".join([*lines, "---", ""]), encoding="utf-8")
    said = ["model=internvl3", "dataset=refcoco_boxes", f"dataset.options.path={tmp_path / 'replica'}"]
    crop = ["collator.image_processing.resize_mode=crop", "collator.image_processing.max_size=90"]
    config = compose(*said, *crop)
    prepared = prepared_from(config, tmp_path / "data")
    train, test = (load_split(config, prepared, split) for split in ("train", "test"))
    assert [len(train), len(test)] == [6, 2]
    collator = build_collator(config, FAMILIES["internvl3"]()[1])
    assert {collator.answer_text(one) for one in train} == {
        "<box>[[0, 222, 394, 889]]</box>"
    }  # of 90 pixels from 15 on
    assert [one.fields["question"] for one in test] == ["left man", "man in red"]
    known = [row_of(one, view=collator.view(one)) for one in test]
    _, summary = summarise(["<box>[[0, 333, 544, 667]]</box>", "no idea"], known, config.dataset.metrics)
    assert summary["main_metric"] == "box_IoU"
    found = {name: summary["metrics"][name] for name in ("box_IoU", "box_ACC@0.5", "box_ACC@0.7", "box_unread")}
    # Columns 15 to 63.96 and rows 29.97 to 60.03 of columns 0 to 64 and rows 30 to 80.
    assert found == {"box_IoU": pytest.approx(0.229, abs=1e-3), "box_ACC@0.5": 0, "box_ACC@0.7": 0, "box_unread": 0.5}
    with pytest.raises(UserError, match=r"The metric box_iou is for data whose answers are boxes"):
        summarise(["[0, 0, 1, 1]"], [row_of(test[0])], ["box_iou"])


def test_questions_about_videos_with_choices(tmp_path, compose):
    """Choices that bear their letters already are asked with one letter each."""
    folder = tmp_path / "published"
    (folder / "data").mkdir(parents=True)
    (folder / "videomme").mkdir()
    shutil.copy(clip("bikes"), folder / "data" / "x7.mp4")
    options = ["A. Apples.", "B. Dates.", "C. Figs.", "D. Plums."]
    row = {"videoID": "x7", "question": "What falls?", "options": options, "answer": "C", "duration": "short",
           "domain": "Life", "task_type": "Counting"}  # fmt: skip
    datasets.Dataset.from_list([row]).to_parquet(folder / "videomme" / "test-00000-of-00001.parquet")
    config = compose("dataset=videomme", "collator=video", "stage=eval_base", f"dataset.options.root={folder}")
    (one,) = load_split(config, prepared_from(config, tmp_path / "data"), "test")
    assert one.videos == (folder / "data" / "x7.mp4",)
    assert one.choices == ("Apples.", "Dates.", "Figs.", "Plums.")
    assert one.answers == ("C",)
    assert one.fields["choices"] == "A. Apples.\nB. Dates.\nC. Figs.\nD. Plums."
    _, summary = summarise(["C. Figs."], [row_of(one)], config.dataset.metrics, config.dataset.metadata)
    assert summary["by"]["duration"]["short"]["metrics"] == {"multiple_choice_accuracy": 1.0}


def test_rows_are_chosen_by_their_columns():
    rows = [{"kind": "image", "n": 1}, {"kind": "video", "n": 2}, {"kind": None, "n": 3}]
    assert [row["n"] for row in shaped(rows, where={"kind": "video"})] == [2]
    assert [row["n"] for row in shaped(rows, where={"kind": ["video", "image"], "n": "1"})] == [1]
    with pytest.raises(UserError, match=r"dataset.options.where 'kinds' does not exist; did you mean 'kind'"):
        list(shaped(rows, where={"kinds": "video"}))


def test_text_is_edited():
    rows = [{"q": " Is it RED? Please answer yes or no.", "h": "nan", "n": None}]
    edits = {"q": ["strip", "capitalize", "without  please answer yes or no."], "h": ["empty nan"], "n": ["strip"]}
    assert list(shaped(rows, edits=edits)) == [{"q": "Is it red?", "h": "", "n": None}]
    with pytest.raises(UserError, match=r"dataset.options.edits.q 'capitalise' does not exist; did you mean 'capital"):
        shaped(rows, edits={"q": ["capitalise"]})


def test_columns_are_gathered_and_lists_are_rows():
    rows = [{"A": "x", "B": "nan", "C": None, "t": ["one", "two"]}]
    found = list(shaped(rows, gathered={"all": ["A", "B", "C"]}, each="t"))
    assert [(row["all"], row["t"]) for row in found] == [(["x"], "one"), (["x"], "two")]


@pytest.mark.parametrize(
    ("choices", "answer", "letter"),
    [
        (["x", "y"], 1, "B"),
        (["x", "y"], "1", "B"),
        (["x", "y"], "B", "B"),
        ("['x', 'y']", "A", "A"),
        (["x", "y"], 2, None),
        (["x", "y"], -1, None),
        (["x", "y"], "C", None),
        ([], "seven", "seven"),
        ("[]", "seven", "seven"),
    ],
)
def test_the_right_choice_is_a_letter(choices, answer, letter):
    (row,) = shaped([{"q": "?", "c": choices, "a": answer}], choices={"question": "q", "choices": "c", "answer": "a"})
    assert row["letter"] == letter


def test_two_tables_are_one():
    other = [{"id": "1", "image": "a", "more": 0}]
    assert list(joined([{"q": "?", "of": "1"}], other, "of", "id", ["image"])) == [{"q": "?", "of": "1", "image": "a"}]
    with pytest.raises(UserError, match=r"no row of the other table has id='2'"):
        list(joined([{"q": "?", "of": "2"}], other, "of", "id", ["image"]))


def test_boxes_of_a_region():
    row = {"question_id": "7", "bbox": [10.0, 20.0, 30.0, 40.0], "answer": ["a", "b"], "image": picture(0, (100, 200))}
    first, second = refcoco_rows([row], "normalised")
    assert (first["text"], second["text"]) == ("a", "b")
    assert json.loads(first["box"]) == pytest.approx([0.1, 0.1, 0.4, 0.3], abs=1e-7)
    (whole,) = refcoco_rows([row], "pixels")
    assert (whole["text"], json.loads(whole["box"])) == ('"a", "b"', [10, 20, 40, 60])
    assert (whole["image_width"], whole["image_height"]) == (100, 200)


def test_an_annotator_who_said_nothing_is_one_of_ten():
    one = example("is it?", "yes")
    assert one.answer == "yes"
    given = type(one)(id="0", fields={}, answers=("", "", "yes"))
    assert given.answer == "yes"
