"""The upload, against a server on this machine that answers as the Hub's documented endpoints do. Not the real Hub."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.conftest import only_run
from vlmexp.errors import UserError
from vlmexp.files import read_json, read_jsonl
from vlmexp.models.hub import check_access, push


class Hub(ThreadingHTTPServer):
    """Keeps what arrives: tokens, repositories and files (large ones by their hash, as Git LFS has it)."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tokens: dict[str, str | None] = {}  # of each path
        self.created: list[dict] = []
        self.large: dict[str, bytes] = {}
        self.commits: list[dict] = []
        self.cards: list[str] = []
        self.files: dict[str, bytes] = {}


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def answer(self, value: object, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.server.tokens[self.path] = self.headers.get("Authorization")
        if self.path == "/api/whoami-v2":
            if self.headers.get("Authorization") != "Bearer hf_right":
                self.answer({"error": "Invalid credentials"}, 401)
            else:
                self.answer({"name": "me", "type": "user", "orgs": [{"name": "ours"}]})
        else:
            self.answer({"error": "not found"}, 404)

    def do_POST(self) -> None:
        body = self.body()
        self.server.tokens[self.path] = self.headers.get("Authorization")
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.url}/ours/it"})
        elif self.path == "/api/validate-yaml":
            self.server.cards.append(json.loads(body)["content"])
            self.answer({"errors": [], "warnings": []})
        elif self.path == "/api/models/ours/it/preupload/main":
            files = json.loads(body)["files"]
            self.answer(
                {
                    "files": [
                        {"path": file["path"], "uploadMode": "lfs" if large(file) else "regular", "shouldIgnore": False}
                        for file in files
                    ]
                }
            )
        elif self.path == "/ours/it.git/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            actions = [{"upload": {"href": f"{self.server.url}/upload/{item['oid']}"}} for item in objects]
            rows = [item | {"actions": action} for item, action in zip(objects, actions, strict=True)]
            self.answer({"transfer": "basic", "objects": rows})
        elif self.path == "/api/models/ours/it/commit/main":
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    self.server.commits.append(value)
                elif line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.large[value["oid"]]
            url = f"{self.server.url}/ours/it/commit/{'0' * 40}"
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": url, "hookOutput": ""})
        else:
            self.answer({"error": f"no {self.path}"}, 404)

    def do_PUT(self) -> None:
        body = self.body()
        self.server.large[hashlib.sha256(body).hexdigest()] = body
        self.answer({})


def large(file: dict) -> bool:
    return re.search(r"\.safetensors$|^tokenizer\.json$", file["path"]) is not None


@pytest.fixture
def hub() -> Iterator[Hub]:
    server = Hub()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def job(cli, vqa_files):
    def run(*overrides: str, hub: Hub, token: str = "hf_right", **options):
        return cli(
            "dataset=files", "dataset.columns={image: picture, question: query, answer: response}", "threads=1",
            *(f"dataset.options.{split}={vqa_files / split}.jsonl" for split in ("train", "test")),
            "train.max_steps=1", "train.eval_strategy=no", "stage=train", *overrides,
            HF_ENDPOINT=hub.url, HF_TOKEN=token, HF_HUB_OFFLINE="0", HF_HUB_DISABLE_XET="1", timeout=120, **options,
        )  # fmt: skip

    return run


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_trained_model_arrives_as_it_is(job, hub, tmp_path):
    done = job("export.push_to_hub=ours/it", hub=hub)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "outputs")
    assert [(repo["name"], repo["organization"], repo["visibility"]) for repo in hub.created] == [
        ("it", "ours", "private")
    ]
    assert hub.files == files_of(run / "deployment_model")
    assert hub.files.keys() >= {"README.md", "config.json", "model.safetensors", "tokenizer.json"}
    assert b'AutoProcessor.from_pretrained("ours/it")' in hub.files["README.md"]
    record = read_json(run / "run.json")
    assert hub.commits[0]["summary"] == f"vlmexp run {record['id']}"
    pushed = record["stages"]["push"]
    assert (pushed["repository"], pushed["what"]) == ("ours/it", "merged")
    assert pushed["commit"] == f"{hub.url}/ours/it/commit/{'0' * 40}"
    assert {token for path, token in hub.tokens.items() if "ours/it" in path} == {"Bearer hf_right"}
    for path in run.rglob("*"):
        assert not path.is_file() or b"hf_right" not in path.read_bytes(), path

    # The adapter of the same run, into a repository that is there.
    steps = len(read_jsonl(run / "metrics.jsonl"))
    hub.files.clear()
    done = job(
        f"run={run}", "stage=export", "export.push_to_hub=ours/it", "export.push=adapter", "export.private=false",
        hub=hub,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert hub.files == files_of(run / "model")
    assert hub.cards[-1] == hub.files["README.md"].decode()
    assert {"adapter_model.safetensors", "adapter_config.json"} < hub.files.keys()
    assert str(tmp_path).encode() not in b"".join(hub.files.values())
    assert hub.created[1]["visibility"] == "public"
    assert len(read_jsonl(run / "metrics.jsonl")) == steps


@pytest.mark.parametrize(
    ("repository", "token", "said"),
    [
        ("ours/it", "hf_wrong", "does not take HF_TOKEN"),
        ("theirs/it", "hf_right", "HF_TOKEN belongs to me, who can write to me, ours"),
    ],
)
def test_a_push_that_cannot_be(hub, monkeypatch, repository, token, said):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(UserError, match=said) as caught:
        check_access(repository)
    assert "hf_wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    check_access("ours/it")
    check_access("me/it")


def test_without_a_network_the_run_stops_before_training(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    with pytest.raises(UserError, match=r"export\.push_to_hub=ours/it: .*offline"):
        check_access("ours/it")


def test_a_refused_upload_says_where_the_model_is(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"{tmp_path} is complete; stage=export run= tries the upload again"):
        push(tmp_path, "ours/other", private=True, message="no such repository here")
