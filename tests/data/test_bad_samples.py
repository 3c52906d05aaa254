"""A folder of files and rows as the world has them: each works, or is named in one sentence."""

from __future__ import annotations

import base64
import io
import json
import os
import re
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.clips import clip, cut_off, drawn, turned
from tests.data.test_images import bomb, encoded
from vlmexp.data.examples import Examples
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.errors import UserError
from vlmexp.files import read_jsonl

COLUMNS = {"image": "image", "question": "question", "answer": "answer"}


def prepare_rows(folder: Path, rows: list[dict] | None = None, **changes) -> Prepared:
    if rows is not None:
        (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = {
        "data_dir": folder / "data", "name": "hostile", "version": "1", "source": "files",
        "options": {"train": str(folder / "train.jsonl")}, "splits": {"train": "train"}, "validation_fraction": 0.0,
        "test_fraction": 0.0, "split_seed": 0, "columns": COLUMNS,
    }  # fmt: skip
    return prepare(**{**arguments, **changes})


def good(folder: Path, count: int = 1) -> list[dict]:
    Image.new("RGB", (8, 8), "red").save(folder / "good.png")
    return [{"image": "good.png", "question": f"is it red? {n}", "answer": "yes"} for n in range(count)]


def hostile_rows(folder: Path) -> dict[str, tuple[dict, str | None]]:
    """name -> (a row, the reason for which it is left out; None: it can be used)."""
    Image.new("RGB", (8, 8), "red").save(folder / "good.png")
    contents = {
        "empty.png": b"", "text.png": b"hello, I am text", "page.jpg": b"<html>404</html>", "bomb.png": bomb(),
        "zeros.jpg": bytes(5000), "magic.png": b"\x89PNG\r\n\x1a\n", "magic.gif": b"GIF89a",
        "magic.jpg": b"\xff\xd8\xff",
        "half.jpg": encoded("JPEG")[:900], "half.png": encoded("PNG")[:900], "half.webp": encoded("WEBP")[:300],
        "half.gif": encoded("GIF")[:900], "photo.txt": encoded("JPEG"), "wrong ending.png": encoded("JPEG"),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    (folder / "folder.png").mkdir()
    (folder / "nowhere.png").symlink_to(folder / "gone.png")
    (folder / "loop.png").symlink_to(folder / "loop.png")
    (folder / "endless.png").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.png")  # nobody will ever write to it
    (folder / "unter ordner").mkdir()
    Image.new("RGB", (1, 1)).save(folder / "unter ordner" / "ein pixel ü.png")
    Image.new("L", (1, 4000)).save(folder / "tall.png")
    Image.new("CMYK", (8, 8)).save(folder / "cmyk.jpg")
    Image.new("P", (8, 8)).save(folder / "palette.gif")
    Image.new("I;16", (8, 8)).save(folder / "deep.png")

    def media(image: object) -> dict:
        return {"image": image, "question": "what is it?", "answer": "red"}

    def text(question: object, answer: object) -> dict:
        return {"image": "good.png", "question": question, "answer": answer}

    damaged = {
        "empty.png": "unknown format", "text.png": "unknown format", "page.jpg": "unknown format",
        "zeros.jpg": "unknown format", "magic.png": "unknown format", "magic.gif": "unknown format",
        "magic.jpg": "unknown format", "bomb.png": "too large",
        "half.jpg": "damaged", "half.png": "damaged", "half.webp": "damaged", "half.gif": "damaged",
        "folder.png": "not a file", "endless.png": "not a file", "pipe.png": "not a file", "loop.png": "missing",
        "n" * 300: "missing", "null\0.png": "missing", "~somebody-unknown/a.png": "missing",
        "nowhere.png": "missing", "gone.png": "missing",
    }  # fmt: skip
    usable = ["photo.txt", "wrong ending.png", "unter ordner/ein pixel ü.png", "tall.png", "cmyk.jpg", "palette.gif"]
    return {
        **{name: (media(name), reason) for name, reason in damaged.items()},
        **{name: (media(name), None) for name in [*usable, "deep.png"]},
        "absolute": (media(str(folder / "good.png")), None),
        "list": (media(["good.png", "tall.png"]), None),
        "empty list": (media([]), None),
        "null": (media(None), None),
        "no path": (media(""), None),
        "null in a list": (media(["good.png", None]), "no image"),
        "broken in a list": (media(["good.png", "text.png"]), "unknown format"),
        "number": (media(7), "no image"),
        "dict": (media({"path": "good.png", "bytes": None}), None),
        "dict of nothing": (media({"path": None, "bytes": None}), "no image"),
        "base64": (media(base64.b64encode(encoded("PNG")).decode()), "missing"),
        "half a character in a name": (media("\ud83d.png"), "no image"),
        "url": (media("https://example.org/cat.png"), "no image"),
        "empty question": (text("", "red"), "empty question"),
        "blank question": (text(" \n", "red"), "empty question"),
        "null question": (text(None, "red"), "empty question"),
        "list as question": (text(["what?"], "red"), "question is no text"),
        "number as question": (text(7, "red"), None),
        "half a character": (text("what \ud83d?", "red"), "question is no text"),
        "control characters": (text("what\0 \u202e is it?", "red"), None),
        "empty answer": (text("what?", ""), "empty answer"),
        "null answer": (text("what?", None), "empty answer"),
        "no answers": (text("what?", []), "empty answer"),
        "number as answer": (text("what?", 3), None),
        "answers": (text("what?", ["red", 3]), None),
        "official answers": (text("what?", [{"answer": "red", "answer_id": 1}]), None),
        "strange answer": (text("what?", {"reply": "red"}), "answer is no text"),
        "no answer at all": ({"image": "good.png", "question": "what?"}, "empty answer"),
    }


def test_hostile_rows_are_left_out_and_counted(tmp_path):
    rows = hostile_rows(tmp_path)
    assert len(rows) >= 45
    given = [{"id": name, **row} for name, (row, _) in rows.items()]
    prepared = prepare_rows(tmp_path, given, on_bad_sample="skip", max_bad_share=0.9)
    expected = {name: reason for name, (_, reason) in rows.items() if reason is not None}
    listed = read_jsonl(prepared.folder / "bad.jsonl")
    assert {row["id"]: row["reason"] for row in listed} == expected
    assert sum(prepared.manifest["bad"]["train"].values()) == len(listed) == len(expected)
    for row in listed:
        assert row["error"].startswith(f"split train, row {row['id']}, column ")
        assert "\n" not in row["error"]
    kept = Examples(prepared, "train", COLUMNS)
    assert [example.id for example in kept] == [name for name in rows if name not in expected]
    by_id = {example.id: example for example in kept}
    assert by_id["answers"].answers == ("red", "3")
    assert by_id["official answers"].answers == ("red",)
    assert by_id["number as question"].fields == {"question": "7"}
    assert [path.name for path in by_id["list"].images] == ["good.png", "tall.png"]
    assert by_id["null"].images == by_id["empty list"].images == by_id["no path"].images == ()
    assert prepared.manifest["without_media"]["train"] == 3


@pytest.mark.parametrize(
    "name", ["half.jpg", "gone.png", "number", "null in a list", "empty question", "strange answer"]
)
def test_one_bad_row_is_an_error_that_names_it(name, tmp_path):
    row, _ = hostile_rows(tmp_path)[name]
    with pytest.raises(UserError) as caught:
        prepare_rows(tmp_path, [*good(tmp_path), {"id": "the row", **row}])
    said = str(caught.value)
    column = (
        "image" if "image" in name or name in ("half.jpg", "gone.png", "number", "null in a list") else name.split()[1]
    )
    assert f"split train, row the row, column {column}" in said
    assert said.startswith("1 of 2 rows of hostile cannot be used")
    assert "dataset.on_bad_sample=skip" in said
    assert "\n" not in said
    if name.endswith(("png", "jpg")):
        assert str(tmp_path / name) in said
    listed = Path(said.partition("listed in ")[2].partition(". Mend")[0])
    assert len(read_jsonl(listed)) == 1


def test_too_many_bad_rows_stop_even_with_skip(tmp_path):
    rows = [*good(tmp_path, 9), {"image": "gone.png", "question": "q", "answer": "a"}]
    assert len(Examples(prepare_rows(tmp_path, rows, on_bad_sample="skip", max_bad_share=0.1), "train", COLUMNS)) == 9
    with pytest.raises(UserError, match=r"10.0% of the train split .* more than dataset.max_bad_share=0.05"):
        prepare_rows(tmp_path, rows, on_bad_sample="skip", max_bad_share=0.05)


def test_only_bad_rows(tmp_path):
    with pytest.raises(UserError, match="no rows: every row of it is bad, the first by this: split train, row train-0"):
        prepare_rows(tmp_path, [{"image": "gone.png", "question": "q", "answer": "a"}], on_bad_sample="skip")


def test_a_mended_file_is_noticed(tmp_path):
    rows = [*good(tmp_path), {"image": "late.png", "question": "q", "answer": "a"}]
    with pytest.raises(UserError, match=r"late.png does not exist"):
        prepare_rows(tmp_path, rows)
    Image.new("RGB", (8, 8)).save(tmp_path / "late.png")
    assert prepare_rows(tmp_path).manifest["counts"]["train"] == 2


def test_a_file_that_changes_later_is_noticed(tmp_path):
    first = prepare_rows(tmp_path, good(tmp_path))
    (tmp_path / "good.png").touch()
    assert prepare_rows(tmp_path) == first
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    second = prepare_rows(tmp_path)
    assert second.folder == first.folder
    assert second.fingerprint != first.fingerprint
    (tmp_path / "good.png").unlink()
    with pytest.raises(UserError, match=r"row train-0, column image: The image .*good.png does not exist"):
        prepare_rows(tmp_path, on_bad_sample="skip")


def test_a_role_may_be_left_empty_where_it_is_not_required(tmp_path):
    rows = [row | {"question": ""} for row in good(tmp_path)]
    prepared = prepare_rows(tmp_path, rows, required=["answer"])
    assert prepared.manifest["bad"] == {"train": {}}
    with pytest.raises(UserError, match="the image is empty"):
        prepare_rows(tmp_path, [*rows, {"image": None, "answer": "a"}], required=["image", "answer"])


def test_a_video_that_is_cut_off_is_a_bad_row(tmp_path):
    pytest.importorskip("av")
    cut_off(clip("carphone_pristine"), tmp_path / "cut.mp4")
    rows = [{"clip": str(path), "question": "q", "answer": "a"} for path in (clip("bikes"), tmp_path / "cut.mp4")]
    columns = {"video": "clip", "question": "question", "answer": "answer"}
    prepared = prepare_rows(tmp_path, rows, columns=columns, on_bad_sample="skip", max_bad_share=0.5)
    assert prepared.manifest["bad"] == {"train": {"damaged": 1}}
    (example,) = Examples(prepared, "train", columns)
    assert [path.name for path in example.videos] == ["bikes.mp4"]
    assert example.images == ()


def test_videos_are_checked_with_the_library_that_reads_them(tmp_path):
    """decord cannot read small turned clips."""
    for library in ("av", "decord"):
        pytest.importorskip(library)
    turned(drawn(tmp_path / "plain.mp4", 8), tmp_path / "turned.mp4", height=48)
    rows = [{"clip": str(tmp_path / name), "question": "q", "answer": "a"} for name in ("plain.mp4", "turned.mp4")]
    columns = {"video": "clip", "question": "question", "answer": "answer"}
    options = {"columns": columns, "on_bad_sample": "skip", "max_bad_share": 0.5}
    assert prepare_rows(tmp_path, rows, **options, video_library="pyav").manifest["bad"] == {"train": {}}
    prepared = prepare_rows(tmp_path, rows, **options, video_library="decord")
    assert prepared.manifest["bad"] == {"train": {"damaged": 1}}
    (bad,) = read_jsonl(prepared.folder / "bad.jsonl")
    assert bad["path"] == str(tmp_path / "turned.mp4")
    assert "cannot be read with decord" in bad["error"]


def test_rows_with_one_id_are_told_apart(tmp_path):
    """As where an id is the image's: predictions are kept and compared by id."""
    ids = ["7", "7", 7, "7-2", None, "7"]
    rows = [row if id is None else {**row, "id": id} for row, id in zip(good(tmp_path, len(ids)), ids, strict=True)]
    kept = Examples(prepare_rows(tmp_path, rows), "train", COLUMNS)
    assert kept.ids() == ["7", "7-2", "7-3", "7-2-2", "train-4", "7-4"]
    assert [example.fields["question"] for example in kept] == [f"is it red? {n}" for n in range(len(ids))]


def test_columns_of_mixed_types_become_text(tmp_path):
    values = [1, "two", None, [3], {"four": 4}, 5.5, 2**80, "\ud800"]
    rows = [{**row, "note": value} for row, value in zip(good(tmp_path, len(values)), values, strict=True)]
    kept = Examples(prepare_rows(tmp_path, rows), "train", COLUMNS, ["note"])
    notes = [example.metadata["note"] for example in kept]
    assert notes == ["1", "two", None, "[3]", '{"four": 4}', "5.5", str(2**80), "?"]


def test_csv_values_stay_what_they_are(tmp_path):
    good(tmp_path)
    (tmp_path / "train.csv").write_text(
        'image,question,answer,code\ngood.png,"is it ""NA"", or not?",NA,007\ngood.png,"two\nlines?",null,1e5\n'
        "good.png,what?,true,\n",
        encoding="utf-8-sig",
    )
    prepared = prepare_rows(tmp_path, options={"train": str(tmp_path / "train.csv")})
    kept = list(Examples(prepared, "train", COLUMNS, ["code"]))
    assert [example.answer for example in kept] == ["NA", "null", "true"]
    assert [example.metadata["code"] for example in kept] == ["007", "1e5", ""]
    assert [example.fields["question"] for example in kept] == ['is it "NA", or not?', "two\nlines?", "what?"]


def test_values_that_json_lacks_are_stored_as_text_and_numbers(tmp_path):
    values = {
        "when": datetime(2026, 1, 2, 3, 4, 5), "day": date(2026, 1, 2), "hour": time(3, 4),
        "took": timedelta(minutes=2), "price": Decimal("3.50"),
        "nested": {"code": b"x\xff", "days": [date(2026, 1, 2)]},
    }  # fmt: skip
    table = pa.Table.from_pylist([{"question": "q", "answer": "a", **values}])
    pq.write_table(table, tmp_path / "train.parquet")
    columns = {"question": "question", "answer": "answer"}
    prepared = prepare_rows(tmp_path, options={"train": str(tmp_path / "train.parquet")}, columns=columns)
    assert Examples(prepared, "train", columns, list(values))[0].metadata == {
        "when": "2026-01-02T03:04:05", "day": "2026-01-02", "hour": "03:04:00", "took": 120.0,
        "price": "3.50", "nested": {"code": "x\ufffd", "days": ["2026-01-02"]},
    }  # fmt: skip


@pytest.mark.parametrize("end", ["", ",,"])
def test_a_table_that_pandas_wrote_with_its_index(end, tmp_path):
    good(tmp_path)
    (tmp_path / "train.csv").write_text(f",image,question,answer{end}\n7,good.png,what?,red{end}\n")
    (example,) = Examples(prepare_rows(tmp_path, options={"train": str(tmp_path / "train.csv")}), "train", COLUMNS)
    assert (example.fields, example.answers) == ({"question": "what?"}, ("red",))
    assert (example.images, example.videos) == ((tmp_path / "good.png",), ())


def test_a_column_may_begin_late(tmp_path):
    rows = [{"question": "q", "answer": "a"}] * 1_000 + good(tmp_path)
    prepared = prepare_rows(tmp_path, rows)
    assert prepared.manifest["without_media"]["train"] == 1_000
    assert Examples(prepared, "train", COLUMNS)[1_000].images == (tmp_path / "good.png",)
    with pytest.raises(UserError, match=r"columns.image=picture: the train split has no column 'picture'"):
        prepare_rows(tmp_path, rows, columns={**COLUMNS, "image": "picture"})


def test_a_required_column_that_is_missing_is_missed_before_all_is_read(tmp_path):
    good(tmp_path)
    rows = "".join(json.dumps({"image": "good.png", "query": "q", "answer": "a"}) + "\n" for _ in range(1_001))
    (tmp_path / "train.jsonl").write_text(rows + "no JSON\n")
    with pytest.raises(UserError, match=r"columns.question=question: the train split has no column 'question'"):
        prepare_rows(tmp_path)


def test_an_image_as_a_data_address(tmp_path):
    content = encoded("PNG")
    address = "data:image/png;base64," + base64.b64encode(content).decode()
    rows = [{"image": image, "question": "q", "answer": "a"} for image in (address, [address])]
    rows += [{"image": bad, "question": "q", "answer": "a"} for bad in ("data:image/svg,<svg/>", address[:-1])]
    prepared = prepare_rows(tmp_path, rows, on_bad_sample="skip", max_bad_share=0.5)
    first, second = Examples(prepared, "train", COLUMNS)
    assert first.images == second.images
    assert first.images[0].read_bytes() == content
    listed = read_jsonl(prepared.folder / "bad.jsonl")
    assert [row["reason"] for row in listed] == ["no image", "no image"]
    assert "'data:image/svg,<svg/>' is a data: address that is not in base64" in listed[0]["error"]
    assert len(listed[1]["error"]) < 300


def test_an_image_in_base64_does_not_fill_the_message(tmp_path):
    row = {"image": base64.b64encode(encoded("PNG")).decode(), "question": "q", "answer": "a"}
    with pytest.raises(UserError, match=r"\.\.\. \([\d,]+ characters\) ") as caught:
        prepare_rows(tmp_path, [*good(tmp_path), row])
    assert len(str(caught.value)) < 1_000


def test_parquet_with_embedded_images(tmp_path):
    content = encoded("PNG")
    rows = [
        {"image": {"bytes": content, "path": "a.png"}, "question": "q", "answer": "a"},
        {"image": {"bytes": content, "path": None}, "question": "q", "answer": "b"},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    prepared = prepare_rows(tmp_path, options={"train": str(tmp_path / "train.parquet")})
    first, second = Examples(prepared, "train", COLUMNS)
    assert first.images == second.images
    assert first.images[0].parent == prepared.folder / "media"
    assert first.images[0].read_bytes() == content


def test_a_data_set_of_the_hub_with_lists_of_images(tmp_path):
    """A folder that the datasets library wrote, as it comes from the Hub."""
    import datasets

    red, blue = (Image.new("RGB", (8, 8), color) for color in ("red", "blue"))
    features = datasets.Features(
        {
            "image": datasets.List(datasets.Image()),
            "question": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    rows = {"image": [[red, blue], [blue]], "question": ["both?", "one?"], "answer": ["yes", "no"]}
    (tmp_path / "hub" / "data").mkdir(parents=True)
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    prepared = prepare_rows(tmp_path, source="hub", options={"path": str(tmp_path / "hub")})
    first, second = Examples(prepared, "train", COLUMNS)
    assert [Image.open(path).getpixel((0, 0)) for path in first.images] == [(255, 0, 0), (0, 0, 255)]
    assert second.images == first.images[1:]
    assert len(list((prepared.folder / "media").iterdir())) == 2
    table.select([0]).to_parquet(tmp_path / "hub" / "data" / "train-00000-of-00001.parquet")
    changed = prepare_rows(tmp_path, source="hub", options={"path": str(tmp_path / "hub")})
    assert changed.folder != prepared.folder
    assert changed.manifest["counts"]["train"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"image": 1}\n{"image": \n', "line 2 is no JSON: .* at character"),
        ("a.jsonl", "[1, 2]\n", "line 1 is a list and no object"),
        ("a.jsonl", "\n\n", "it has no rows"),
        ("a.json", '{"a": [{"q": 1}], "b": [{"q": 2}]}', "an object with 2 lists"),
        ("a.json", "[3]", "row 0 is a int and no object"),
        ("a.json", '{"data": ', "it is no JSON"),
        ("a.csv", "image,question,answer\na.png,q\n", "line 2 has not as many values"),
        ("a.csv", 'image,question,answer\na.png,"q,a\n', "line 1: unexpected end"),
        ("a.csv", "image,question,answer\n", "it has no rows"),
        ("a.csv", "image,answer,question,answer\na.png,x,q,y\n", "it has several columns with the name 'answer'"),
        ("a.jsonl", b"\xff\xfe{\x00", "it is not in UTF-8"),
        ("a.parquet", b"PAR1 but not really PAR1", "cannot be read"),
        ("a.jsonl", "[" * 100_000, "nested too deeply"),
    ],
)
def test_files_that_are_not_what_they_say(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=rf"dataset.options.train=.*{name} cannot be read: .*{message}|{message}"):
        prepare_rows(tmp_path, options={"train": str(tmp_path / name)})


@pytest.mark.parametrize(
    "text",
    ['[{"question": "q", "answer": "a"}]', '{"data": [{"question": "q", "answer": "a"}], "version": 2}',
     '{"question": "q", "answer": "a"}', '{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}\n'],
)  # fmt: skip
def test_forms_of_json(text, tmp_path):
    (tmp_path / "a.json").write_text(text)
    prepared = prepare_rows(
        tmp_path,
        options={"train": str(tmp_path / "a.json")},
        columns={"question": "question", "answer": "answer"},
    )
    assert next(iter(Examples(prepared, "train", {"question": "question", "answer": "answer"}))).answer == "a"


def test_one_place_has_one_name(tmp_path, monkeypatch):
    first = prepare_rows(tmp_path, good(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("train.jsonl", "./train.jsonl", "~/train.jsonl", "data/../train.jsonl"):
        assert prepare_rows(tmp_path, options={"train": name}) == first


def test_prepared_data_need_no_lock(tmp_path, monkeypatch):
    """As in a folder that cannot be written."""
    first = prepare_rows(tmp_path, good(tmp_path))

    def refused(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("vlmexp.data.prepare.FileLock", refused)
    assert prepare_rows(tmp_path) == first
    with pytest.raises(UserError, match=r"paths.data=.* cannot be written: Permission denied"):
        prepare_rows(tmp_path, good(tmp_path, 2))


def test_bytes_that_are_no_image_are_named(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    rows = [
        {"image": {"bytes": content}, "question": "q", "answer": "a"} for content in (buffer.getvalue(), b"", b"no")
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "train.parquet")
    prepared = prepare_rows(
        tmp_path, options={"train": str(tmp_path / "train.parquet")}, on_bad_sample="skip", max_bad_share=0.9
    )
    listed = read_jsonl(prepared.folder / "bad.jsonl")
    assert [(row["id"], row["reason"]) for row in listed] == [
        ("train-1", "unknown format"),
        ("train-2", "unknown format"),
    ]
    assert all((prepared.folder / row["path"]).is_file() for row in listed)
    assert "partial" not in listed[0]["error"]


def test_paths_can_be_made_of_other_columns(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "picture-7.png")
    rows = [{"number": 7, "question": "q", "answer": "a"}]
    options = {"train": str(tmp_path / "train.jsonl"), "paths": {"image": "picture-{number}.png"}}
    (example,) = Examples(prepare_rows(tmp_path, rows, options=options), "train", COLUMNS)
    assert example.images == (tmp_path / "picture-7.png",)
    with pytest.raises(UserError, match=r"dataset.options.paths: a row of .* has no column 'numbr'"):
        prepare_rows(tmp_path, rows, options={**options, "paths": {"image": "picture-{numbr}.png"}})
    for text in ("{number.x}", "{number[0]}", "{}", "{number"):
        with pytest.raises(UserError, match=rf"dataset.options.paths.image={re.escape(text)}: .*names of columns in"):
            prepare_rows(tmp_path, rows, options={**options, "paths": {"image": text}})


def test_choices_become_letters(tmp_path):
    import datasets

    rows = {
        "question": ["which?", "what?", "none?"],
        "choices": [["x", "y"], ["u", "v", "w"], ["s"]],
        "answer": [1, 0, -1],
    }
    (tmp_path / "hub").mkdir()
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "hub" / "train.parquet")
    columns = {"question": "question_and_choices", "answer": "letter"}
    prepared = prepare_rows(
        tmp_path, source="hub", columns=columns, on_bad_sample="skip", max_bad_share=0.5,
        options={"path": str(tmp_path / "hub"), "choices": {name: name for name in rows}},
    )  # fmt: skip
    first, second = Examples(prepared, "train", columns)
    assert (first.fields["question"], first.answer) == ("which?\nA. x\nB. y", "B")
    assert (second.fields["question"], second.answer) == ("what?\nA. u\nB. v\nC. w", "A")
    assert prepared.manifest["bad"]["train"] == {"empty answer": 1}
