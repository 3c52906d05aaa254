"""Columns inside of columns, and splits of several files."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.test_conversions import table
from vlmexp.data.examples import Examples
from vlmexp.data.nested import ABSENT, value_at
from vlmexp.data.prepare import prepare
from vlmexp.errors import UserError

NESTED = {"image": "m.image", "question": "qa.question", "answer": "qa.answers.text"}
SQUAD = {"question": "what?", "answers": {"text": ["red", "dark red"], "answer_start": [0, 7]}}


def read(data, source="files", columns=NESTED, **options):
    return prepare(
        data, "nested", "1", source, options, {"train": "train"}, 0.0, 0.0, 0,
        columns, on_bad_sample="error",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "path", "value"),
    [
        ({"a": {"b": 1}}, "a.b", 1),
        ({"a.b": "real", "a": {"b": "nested"}}, "a.b", "real"),
        ({"a.b": {"c": 2}}, "a.b.c", 2),
        ({"a": [{"b": 1}, {"b": 2}, {}]}, "a.b", [1, 2]),
        ({"a": [{"b": [1, 2]}, {"b": [3]}]}, "a.b", [1, 2, 3]),
        ({"a": '{"b": ["x"]}'}, "a.b", ["x"]),
        ({"a": "{'b': 'x'}"}, "a.b", "x"),
        ({"a": None}, "a.b", None),
        ({"a": {"b": None}}, "a.b.c", None),
        ({"a": {"c": 1}}, "a.b", ABSENT),
        ({"a": [{"c": 1}]}, "a.b", ABSENT),
        ({"a": "text"}, "a.b", ABSENT),
        ({"a": []}, "a.b", []),
    ],
)
def test_the_value_at_a_dotted_path(row, path, value):
    assert value_at(row, path) == value


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv", "hub"])
def test_nested_columns_of_every_kind_of_file(ending, tmp_path):
    import datasets

    (tmp_path / "img").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "img" / "a.png")
    rows = [{"m": {"image": "img/a.png"}, "qa": SQUAD, "info": {"kind": "color"}}]
    options = {"train": str(tmp_path / f"train.{ending}")}
    source = "files"
    if ending == "jsonl":
        (tmp_path / "train.jsonl").write_text(json.dumps(rows[0]) + "\n")
    elif ending == "json":
        (tmp_path / "train.json").write_text(json.dumps(rows))
    elif ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    elif ending == "csv":
        table(tmp_path / "train.csv", [{name: json.dumps(value) for name, value in rows[0].items()}])
    else:
        rows[0]["m"]["image"] = str(tmp_path / "img" / "a.png")
        features = datasets.Features(
            m={"image": datasets.Image()}, info={"kind": datasets.ClassLabel(names=["shape", "color"])},
            qa={
                "question": datasets.Value("string"),
                "answers": {
                    "text": datasets.List(datasets.Value("string")),
                    "answer_start": datasets.List(datasets.Value("int32")),
                },
            },
        )  # fmt: skip
        datasets.Dataset.from_list(rows, features).save_to_disk(tmp_path / "saved")
        source, options = "hub", {"path": str(tmp_path / "saved")}
    for answer in ("qa.answers.text", "qa.answers"):
        columns = {**NESTED, "answer": answer}
        data = read(tmp_path / "data", source, columns, **options)
        (example,) = Examples(data, "train", columns, ["info.kind"])
        assert (example.fields, example.answers) == ({"question": "what?"}, ("red", "dark red"))
        assert [path.suffix for path in example.images] == [".png"]
        assert example.metadata == {"info.kind": "color"}


def test_a_path_that_leads_nowhere_is_named_with_those_there_are(tmp_path):
    (tmp_path / "train.jsonl").write_text(json.dumps({"qa": SQUAD}) + "\n")
    columns = {"question": "qa.question", "answer": "qa.answer.text"}
    with pytest.raises(UserError, match=r"no column 'qa\.answer\.text'; did you mean 'qa\.answers\.text'\?"):
        read(tmp_path / "data", columns=columns, train=str(tmp_path / "train.jsonl"))


@pytest.fixture
def shards(tmp_path):
    """Three parquet files of one row each, and others beside them."""
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in (10, 9, 1):
        rows = {"question": [f"{number}?"], "answer": [str(number)]}
        pq.write_table(pa.table(rows), folder / f"train-{number}-of-10.parquet")
    pq.write_table(pa.table({"question": pa.array([], pa.string())}), folder / "train-11-of-10.parquet")
    (folder / "_SUCCESS").write_text("")
    (folder / ".hidden.csv").write_text("")
    return folder


TEXTS = {"question": "question", "answer": "answer"}


@pytest.mark.parametrize(
    "given", ["{}", "{}/train-*.parquet", "{}/*.parquet", ["{}/train-1-of-10.parquet", "{}/train-[19]*-of-10.parquet"]]
)
def test_a_split_of_several_files(given, shards, tmp_path):
    named = given.format(shards) if isinstance(given, str) else [name.format(shards) for name in given]
    data = read(tmp_path / "data", columns=TEXTS, train=named)
    found = [example.answer for example in Examples(data, "train", TEXTS)]
    assert found == (["1", "9", "10"] if isinstance(given, str) else ["1", "1", "9", "10"])
    pq.write_table(pa.table({"question": ["new?"], "answer": ["new"]}), shards / "train-9-of-10.parquet")
    changed = read(tmp_path / "data", columns=TEXTS, train=named)
    assert "new" in [example.answer for example in Examples(changed, "train", TEXTS)]


@pytest.mark.parametrize("ending", ["jsonl", "csv", "tsv"])
def test_patterns_of_other_endings(ending, tmp_path):
    for number in (2, 10):
        row = {"question": f"{number}?", "answer": 'say "hi", you'}
        if ending == "jsonl":
            (tmp_path / f"part{number}.jsonl").write_text(json.dumps(row) + "\n")
        else:
            table(tmp_path / f"part{number}.{ending}", [row])
    data = read(tmp_path / "data", columns=TEXTS, train=str(tmp_path / f"part*.{ending}"))
    assert [e.fields["question"] for e in Examples(data, "train", TEXTS)] == ["2?", "10?"]
    assert Examples(data, "train", TEXTS)[0].answer == 'say "hi", you'


def test_a_file_whose_name_is_a_pattern_is_that_file(tmp_path):
    (tmp_path / "a[1].jsonl").write_text('{"question": "literal?", "answer": "a"}\n')
    (tmp_path / "a1.jsonl").write_text('{"question": "pattern?", "answer": "a"}\n')
    data = read(tmp_path / "data", columns=TEXTS, train=str(tmp_path / "a[1].jsonl"))
    assert [e.fields["question"] for e in Examples(data, "train", TEXTS)] == ["literal?"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("shards/test-*.parquet", r"no file fits this pattern"),
        ("empty", r"the folder has no file that ends in \.jsonl"),
        ("both", r"files of several kinds \(\.csv, \.jsonl\): name them, as in .*both/\*\.csv"),
    ],
)
def test_files_that_are_not_there(name, message, shards, tmp_path):
    for folder in ("empty", "both"):
        (tmp_path / folder).mkdir()
    for file in ("a.csv", "b.jsonl"):
        (tmp_path / "both" / file).write_text("x\n")
    with pytest.raises(UserError, match=message):
        read(tmp_path / "data", columns=TEXTS, train=str(tmp_path / name))


def test_images_that_are_a_list_in_a_csv_file(tmp_path):
    for name in ("a", "b"):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{name}.png")
    file = table(tmp_path / "train.csv", [{"image": "['a.png', 'b.png']", "question": "q?", "answer": "a"}])
    columns = {**TEXTS, "image": "image"}
    (example,) = Examples(read(tmp_path / "data", columns=columns, train=file), "train", columns)
    assert example.images == (tmp_path / "a.png", tmp_path / "b.png")
