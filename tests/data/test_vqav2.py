"""VQA v2 from a small replica in the official layout: from disk, and from a web server that breaks off."""

from __future__ import annotations

import http.server
import json
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import only_run
from vlmexp.collator.lengths import token_lengths
from vlmexp.command_line import script_of_the_hub_replaced
from vlmexp.data.download import download, unpack
from vlmexp.data.examples import Examples
from vlmexp.data.json_rows import listed
from vlmexp.data.prepare import Prepared, prepare
from vlmexp.data.stage import download as download_stage
from vlmexp.errors import UserError
from vlmexp.evaluation.stage import eval_finetuned
from vlmexp.files import read_json, read_jsonl
from vlmexp.runs import Run
from vlmexp.training.stage import train

COLUMNS = {"image": "image", "question": "question", "answer": "answers"}
OTHER = "dataset.options.path=a/b"
TEN = ["yes"] * 6 + ["no"] * 3 + ["maybe"]


def replica(folder: Path) -> Path:
    """Four train and two validation images with three questions each, as the official files have them."""
    folder.mkdir()
    for coco, first, images in (("train2014", 9, 4), ("val2014", 42, 2)):
        (folder / coco).mkdir()
        questions, annotations = [], []
        for image_id in range(first, first + images):
            Image.new("RGB", (8, 8), (image_id, 0, 0)).save(folder / coco / f"COCO_{coco}_{image_id:012d}.jpg")
            for number in range(3):
                question_id = image_id * 1000 + number
                questions.append({"image_id": image_id, "question": f"Is it {number}?", "question_id": question_id})
                annotations.append(
                    {
                        "question_type": "is it", "multiple_choice_answer": "yes", "image_id": image_id,
                        "answers": [
                            {"answer": answer, "answer_confidence": "yes", "answer_id": n + 1}
                            for n, answer in enumerate(TEN)
                        ],
                        "answer_type": "yes/no", "question_id": question_id,
                    }
                )  # fmt: skip
        about = {"info": {"version": "2.0"}, "license": {}, "data_subtype": coco}
        (folder / f"v2_OpenEnded_mscoco_{coco}_questions.json").write_text(
            json.dumps({**about, "task_type": "Open-Ended", "questions": questions})
        )
        (folder / f"v2_mscoco_{coco}_annotations.json").write_text(json.dumps({**about, "annotations": annotations}))
    return folder


def archives(source: Path, folder: Path) -> Path:
    """The replica as the official zip archives."""
    folder.mkdir()
    for coco, title in (("train2014", "Train"), ("val2014", "Val")):
        for name, members in (
            (f"v2_Questions_{title}_mscoco", [source / f"v2_OpenEnded_mscoco_{coco}_questions.json"]),
            (f"v2_Annotations_{title}_mscoco", [source / f"v2_mscoco_{coco}_annotations.json"]),
            (coco, sorted((source / coco).iterdir())),
        ):
            with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
                for path in members:
                    archive.write(path, path.relative_to(source))
    return folder


def prepare_vqav2(tmp_path: Path, **options) -> Prepared:
    return prepare(
        tmp_path / "data", "vqav2", "1", "vqav2", options, {"train": "train", "validation": None, "test": "validation"},
        0.25, 0.1, 0, COLUMNS,
    )  # fmt: skip


@dataclass
class Server:
    """A web server with byte ranges that can break off and change its files."""

    folder: Path
    break_after: dict[str, int] = field(default_factory=dict)  # file -> bytes after which the connection ends, once
    fails: dict[str, int] = field(default_factory=dict)  # file -> status to answer with
    ranges: bool = True
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Server]]:
    running = []

    def start(folder: Path) -> Server:
        state = Server(folder)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = self.path.lstrip("/")
                asked = self.headers["Range"]
                state.requests.append((name, asked))
                path = state.folder / name
                if name in state.fails or not path.is_file():
                    self.send_error(state.fails.get(name, 404))
                    return
                content = path.read_bytes()
                tag = f'"{hash(content)}"'
                start = 0
                if asked and state.ranges and self.headers["If-Range"] == tag:
                    start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                else:
                    self.send_response(200)
                self.send_header("ETag", tag)
                self.send_header("Content-Length", str(len(content) - start))
                self.end_headers()
                end = state.break_after.pop(name, len(content))
                self.wfile.write(content[start : max(start, end)])

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        running.append(server)
        state.url = f"http://127.0.0.1:{server.server_port}"
        return state

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("vlmexp.data.download._PAUSE_S", 0.0)


def test_from_disk(tmp_path):
    root = replica(tmp_path / "vqa")
    prepared = prepare_vqav2(tmp_path, root=str(root), download=False)
    assert prepared.manifest["counts"] == {"train": 9, "validation": 3, "test": 6}
    test = Examples(prepared, "test", COLUMNS, ["answer_type", "question_type"])
    assert test[0].id == "42000"
    assert test[0].images == (root / "val2014" / "COCO_val2014_000000000042.jpg",)
    assert test[0].fields == {"question": "Is it 0?"}
    assert test[0].answers == tuple(TEN)
    assert test[0].answer == "yes"
    assert test[0].metadata == {"answer_type": "yes/no", "question_type": "is it"}
    train = Examples(prepared, "train", COLUMNS, answer_seed=3)
    assert {example.answer for example in train} <= set(TEN)
    assert [e.answer for e in train] == [e.answer for e in Examples(prepared, "train", COLUMNS, answer_seed=3)]


def test_a_changed_annotation_file_is_noticed(tmp_path):
    root = replica(tmp_path / "vqa")
    first = prepare_vqav2(tmp_path, root=str(root))
    path = root / "v2_mscoco_train2014_annotations.json"
    path.write_text(path.read_text().replace('"yes/no"', '"other"'))
    second = prepare_vqav2(tmp_path, root=str(root))
    assert second.fingerprint != first.fingerprint
    assert Examples(second, "train", COLUMNS, ["answer_type"])[0].metadata == {"answer_type": "other"}


def test_downloaded(tmp_path, serve):
    server = serve(archives(replica(tmp_path / "vqa"), tmp_path / "web"))
    urls = {"questions_url": server.url, "images_url": server.url}
    prepared = prepare_vqav2(tmp_path, root=str(tmp_path / "root"), **urls)
    assert prepared.manifest["counts"] == {"train": 9, "validation": 3, "test": 6}
    assert sorted(path.name for path in (tmp_path / "root").iterdir() if not path.name.startswith(".")) == [
        "train2014", "v2_OpenEnded_mscoco_train2014_questions.json", "v2_OpenEnded_mscoco_val2014_questions.json",
        "v2_mscoco_train2014_annotations.json", "v2_mscoco_val2014_annotations.json", "val2014",
    ]  # fmt: skip
    assert len(server.requests) == 6
    assert prepare_vqav2(tmp_path, root=str(tmp_path / "root"), **urls) == prepared
    assert len(server.requests) == 6


def test_what_is_missing_is_named(tmp_path):
    root = replica(tmp_path / "vqa")
    (root / "v2_mscoco_val2014_annotations.json").unlink()
    with pytest.raises(UserError, match=r"has no v2_mscoco_val2014_annotations.json, .*v2_Annotations_Val_mscoco.zip"):
        prepare_vqav2(tmp_path, root=str(root), download=False)


def test_an_annotation_file_that_is_none(tmp_path):
    root = replica(tmp_path / "vqa")
    (root / "v2_mscoco_val2014_annotations.json").write_text("[]")
    with pytest.raises(UserError, match="cannot be read as the official file"):
        prepare_vqav2(tmp_path, root=str(root))


def test_a_question_without_annotation_is_a_bad_row(tmp_path):
    root = replica(tmp_path / "vqa")
    path = root / "v2_mscoco_val2014_annotations.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "annotations": content["annotations"][1:]}))
    with pytest.raises(UserError, match="split test, row 42000, column answers: the answer is empty"):
        prepare_vqav2(tmp_path, root=str(root))


def changed(path: Path, name: str, entries: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), name: entries}))


def test_malformed_entries_are_bad_rows(tmp_path):
    root = replica(tmp_path / "vqa")
    path = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    first, second, third, fourth, *_ = json.loads(path.read_text())["questions"]
    del first["image_id"], second["question"], third["question_id"]
    changed(path, "questions", [first, second, third, fourth | {"image_id": "43"}, "oops"])
    path = root / "v2_mscoco_train2014_annotations.json"
    annotations = json.loads(path.read_text())["annotations"]
    del annotations[0]["question_id"], annotations[1]["answers"]
    annotations[2]["answers"], annotations[3]["answers"] = [{"confidence": "yes"}], ["red", "blue"]
    changed(path, "annotations", [None, *annotations])
    options = {"root": str(root), "download": False}
    prepared = prepare(
        tmp_path / "data", "vqav2", "1", "vqav2", options, {"train": "train", "test": "validation"}, 0, 0, 0, COLUMNS,
        on_bad_sample="skip", max_bad_share=1,
    )  # fmt: skip
    assert [(row["id"], row["reason"]) for row in read_jsonl(prepared.folder / "bad.jsonl")] == [
        ("9000", "empty answer"), ("9001", "empty answer"), ("9002", "answer is no text"),
        ("42001", "empty question"), ("test-2", "empty answer"), ("test-4", "empty question"),
        ("42000", "missing"), ("43000", "missing"),
    ]  # fmt: skip
    assert Examples(prepared, "train", COLUMNS)[0].answers == ("red", "blue")


@pytest.mark.parametrize("entries", [{"a": 1}, "none", None])
def test_entries_that_are_no_list(entries, tmp_path):
    root = replica(tmp_path / "vqa")
    changed(root / "v2_OpenEnded_mscoco_train2014_questions.json", "questions", entries)
    with pytest.raises(
        UserError, match=r"train2014_questions.json cannot be read .* its questions are a \w+ and no list"
    ):
        prepare_vqav2(tmp_path, root=str(root))


def test_ids_may_be_texts_in_one_file_and_must_be_of_one_release(tmp_path):
    root = replica(tmp_path / "vqa")
    path = root / "v2_mscoco_train2014_annotations.json"
    annotations = json.loads(path.read_text())["annotations"]
    changed(path, "annotations", [row | {"question_id": str(row["question_id"])} for row in annotations])
    assert prepare_vqav2(tmp_path, root=str(root)).manifest["counts"]["train"] == 9
    changed(path, "annotations", [row | {"question_id": row["question_id"] + 10**6} for row in annotations])
    with pytest.raises(UserError, match=r"train2014_annotations.json has no answer to any question of v2_OpenEnded"):
        prepare_vqav2(tmp_path, root=str(root))


def test_annotations_may_come_in_any_order_but_not_twice(tmp_path):
    root = replica(tmp_path / "vqa")
    fingerprint = prepare_vqav2(tmp_path, root=str(root)).manifest["lists"]
    train = Examples(prepare_vqav2(tmp_path, root=str(root)), "train", COLUMNS)
    before = [(example.id, example.answers) for example in train]
    path = root / "v2_mscoco_train2014_annotations.json"
    annotations = json.loads(path.read_text())["annotations"]
    changed(path, "annotations", annotations[5:] + annotations[:5][::-1])
    again = prepare_vqav2(tmp_path, root=str(root))
    assert again.manifest["lists"]["pictures.jsonl"] == fingerprint["pictures.jsonl"]
    assert [(example.id, example.answers) for example in Examples(again, "train", COLUMNS)] == before
    changed(path, "annotations", [*annotations, annotations[2]])
    with pytest.raises(UserError, match=r"train2014_annotations.json has two annotations of question_id=9002"):
        prepare_vqav2(tmp_path, root=str(root))


def test_a_question_that_comes_twice_is_answered_twice(tmp_path):
    root = replica(tmp_path / "vqa")
    path = root / "v2_OpenEnded_mscoco_val2014_questions.json"
    questions = json.loads(path.read_text())["questions"]
    changed(path, "questions", [*questions, questions[0]])
    test = Examples(prepare_vqav2(tmp_path, root=str(root)), "test", COLUMNS)
    assert [test[0].id, test[6].id, test[6].answers] == ["42000", "42000-2", tuple(TEN)]


def test_a_file_that_is_damaged_behind_the_last_row_is_damaged(tmp_path):
    root = replica(tmp_path / "vqa")
    path = root / "v2_mscoco_val2014_annotations.json"
    path.write_text(path.read_text()[:-1])
    with pytest.raises(UserError, match=r"val2014_annotations.json cannot be read as the official file"):
        prepare_vqav2(tmp_path, root=str(root))


@pytest.mark.parametrize("block", [1, 7, 2**20])
@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": "), (" ,\n\t", " : ")])
def test_a_list_is_read_in_pieces(block, separators, tmp_path, monkeypatch):
    monkeypatch.setattr("vlmexp.data.json_rows._BLOCK", block)
    values = [{"a": [1, {"b": ", {"}]}, {}, 12, "x, {", [{}], {"é": 1.5}, {"c": '"}, {"'}]
    text = json.dumps({"info": {"rows": [{}]}, "rows": values, "more": [1]}, separators=separators, indent=None)
    path = tmp_path / "a.json"
    path.write_text(text)
    with path.open() as file:
        assert list(listed(file, "rows")) == values
    with path.open() as file, pytest.raises(KeyError):
        list(listed(file, "none"))


def test_sizes_of_images_are_known_and_no_file_is_opened_for_them(tmp_path, make_collator, monkeypatch):
    root = replica(tmp_path / "vqa")
    Image.new("RGB", (40, 24)).save(root / "train2014" / "COCO_train2014_000000000010.jpg")
    turned = Image.new("RGB", (40, 24)).getexif()
    turned[0x0112] = 6
    Image.new("RGB", (40, 24)).save(root / "train2014" / "COCO_train2014_000000000011.jpg", exif=turned)
    prepared = prepare_vqav2(tmp_path, root=str(root))
    sizes = {int(Path(path).stem[-2:]): size for path, size in prepared.image_sizes().items()}
    assert sizes == {9: (8, 8), 10: (40, 24), 11: (24, 40), 12: (8, 8), 42: (8, 8), 43: (8, 8)}
    examples = Examples(prepared, "train", COLUMNS)
    collator = make_collator()
    expected = [len(collator([example])["input_ids"][0]) for example in examples]
    monkeypatch.setattr("vlmexp.collator.media.image_size", lambda *_: pytest.fail("opened"))
    assert token_lengths(collator, examples, with_answer=True) == expected


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "a.bin").write_bytes(bytes(range(256)) * 1000)
    return tmp_path / "web" / "a.bin"


def test_a_broken_connection_is_resumed(file, tmp_path, serve):
    server = serve(file.parent)
    server.break_after["a.bin"] = 100_000
    download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == file.read_bytes()
    assert server.requests == [("a.bin", None), ("a.bin", "bytes=100000-")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.bin", "web"]


def test_another_process_resumes_what_one_left(file, tmp_path, serve, monkeypatch):
    server = serve(file.parent)
    server.break_after["a.bin"] = 50_000
    monkeypatch.setattr("vlmexp.data.download._ATTEMPTS", 1)
    server.fails = {}
    with monkeypatch.context() as patched:
        patched.setattr("vlmexp.data.download.time.sleep", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin.part").stat().st_size == 50_000
    download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == file.read_bytes()
    assert server.requests[-1] == ("a.bin", "bytes=50000-")


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_meanwhile_is_fetched_anew(ranges, file, tmp_path, serve):
    server = serve(file.parent)
    server.ranges = ranges
    (tmp_path / "a.bin.part").write_bytes(b"old" * 1000)
    (tmp_path / "a.bin.part.json").write_text('{"bytes": 9000, "version": "\\"old\\""}')
    download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == file.read_bytes()


def test_a_part_of_unknown_origin_is_not_trusted(file, tmp_path, serve):
    server = serve(file.parent)
    (tmp_path / "a.bin.part").write_bytes(b"who knows")
    download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert (tmp_path / "a.bin").read_bytes() == file.read_bytes()


@pytest.mark.parametrize(("status", "requests"), [(404, 1), (403, 1), (500, 5), (503, 5)])
def test_a_server_that_refuses(status, requests, file, tmp_path, serve):
    server = serve(file.parent)
    server.fails["a.bin"] = status
    with pytest.raises(UserError, match=rf"a.bin cannot be downloaded: .*{status}"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")
    assert len(server.requests) == requests


def test_no_server_at_all(tmp_path):
    with pytest.raises(UserError, match=r"cannot be downloaded: .*refused"):
        download("http://127.0.0.1:9/a.bin", tmp_path / "a.bin")


def test_a_full_disk_is_known_before(file, tmp_path, serve, monkeypatch):
    server = serve(file.parent)
    monkeypatch.setattr("vlmexp.data.download.shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    with pytest.raises(UserError, match=r"has 256,000 bytes more, and .* has room for 1,000"):
        download(f"{server.url}/a.bin", tmp_path / "a.bin")


def test_a_damaged_archive_is_noticed_and_fetched_anew(tmp_path, serve):
    web = archives(replica(tmp_path / "vqa"), tmp_path / "web")
    whole = (web / "val2014.zip").read_bytes()
    damaged = bytearray(whole)
    damaged[200] ^= 0xFF  # inside the first image
    (web / "val2014.zip").write_bytes(damaged)
    server = serve(web)
    options = {"root": str(tmp_path / "root"), "questions_url": server.url, "images_url": server.url}
    with pytest.raises(UserError, match=r"val2014.zip was damaged \(.*CRC.*\) and is deleted: run again"):
        prepare_vqav2(tmp_path, **options)
    assert not (tmp_path / "root" / "val2014").exists()
    (web / "val2014.zip").write_bytes(whole)
    assert prepare_vqav2(tmp_path, **options).manifest["counts"]["test"] == 6


@pytest.mark.parametrize("content", [b"", b"<html>moved</html>", b"PK\x03\x04 and no more"])
def test_what_is_no_archive(content, tmp_path):
    (tmp_path / "a.zip").write_bytes(content)
    with pytest.raises(UserError, match="was damaged"):
        unpack(tmp_path / "a.zip", tmp_path, "images")
    assert not list(tmp_path.iterdir())


def test_an_archive_of_something_else(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../images/evil.jpg", b"")
        archive.writestr("readme.txt", b"")
    with pytest.raises(UserError, match="holds no images"):
        unpack(tmp_path / "a.zip", tmp_path, "images")


def test_the_same_data_as_a_script_of_the_hub(cli, tmp_path):
    """Where the Hub's id of it is the default, it is answered from the official archives, which is said."""
    done = cli("dataset=hub", "stage=download", f"dataset.options.root={replica(tmp_path / 'replica')}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("HuggingFaceM4/VQAv2 is a script on the Hub") == 1
    record = read_json(only_run(tmp_path) / "run.json")
    assert record["data"]["name"] == "vqav2"
    assert record["data"]["counts"]["test"] == 6


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        (["dataset=hub", "seed=1"], None, ["dataset=vqav2", "seed=1"]),
        (["dataset=hub"], "HuggingFaceM4/VQAv2", ["dataset=vqav2"]),
        (["dataset=hub", "dataset.options.path='HuggingFaceM4/VQAv2'"], "a/b", ["dataset=vqav2"]),
        (["dataset=hub", "dataset.options.revision=main"], None, ["dataset=vqav2"]),
        (["dataset=hub"], "a/b", ["dataset=hub"]),
        (["dataset=hub", OTHER], "HuggingFaceM4/VQAv2", ["dataset=hub", OTHER]),
        (["dataset=gqa"], None, ["dataset=gqa"]),
        ([], "HuggingFaceM4/VQAv2", []),
    ],
)  # fmt: skip
def test_which_id_is_the_script(given, environment, expected, monkeypatch):
    monkeypatch.delenv("DATASET", raising=False)
    if environment:
        monkeypatch.setenv("DATASET", environment)
    assert script_of_the_hub_replaced(given) == expected


def test_from_download_to_evaluation(compose, tmp_path):
    """The stages of a whole run on the replica; all of its validation questions are scored, by their answer type."""
    config = compose(
        "dataset=vqav2", f"dataset.options.root={replica(tmp_path / 'replica')}", "train=smoke", "train.max_steps=2",
        "evaluation.blind=none",
    )  # fmt: skip
    for stage in (download_stage, train, eval_finetuned):
        with Run.open(tmp_path / stage.__name__, config, []) as run:
            stage(config, run)
    result = read_json(tmp_path / "eval_finetuned" / "evaluation" / "finetuned_vlm_model_evaluation.json")
    assert (result["n"], result["main_metric"]) == (6, "vqa_accuracy")
    predictions = read_jsonl(tmp_path / "eval_finetuned" / "evaluation" / "finetuned_vlm_model_predictions.jsonl")
    assert [row["answers"] for row in predictions] == [TEN] * 6
    assert {row["answer_type"] for row in predictions} == {"yes/no"}
