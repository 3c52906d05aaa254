"""A small HTTP server that answers like the Hugging Face Hub, for a folder of repositories."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN, TOKEN_WITHOUT_ACCESS = "hf_good", "hf_other"


class HubServer(ThreadingHTTPServer):
    """Serves `root/ORG/NAME/*` under one commit; repositories named `gated`, `down` and `cut*` behave so."""

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.root = root
        self.cuts: dict[str, int] = {}  # path -> connections cut so far
        self.requests: list[str] = []
        self.is_down = False

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(root: Path) -> Iterator[HubServer]:
    server = HubServer(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    server: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        is_api = path.startswith("/api/models/")
        org, name, *rest = path.removeprefix("/api/models/" if is_api else "/").split("/")
        folder = self.server.root / org / name
        revision = rest[1] if len(rest) > 1 else "main"
        if token not in ("", TOKEN, TOKEN_WITHOUT_ACCESS):
            self.refuse(401, None, "Invalid credentials in Authorization header")
        elif name == "down" or self.server.is_down:
            self.refuse(503, None, "Service Unavailable")
        elif not folder.is_dir():
            # The Hub does not tell strangers whether a repository is private or does not exist.
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        elif name == "gated" and token != TOKEN:
            self.refuse(403 if token else 401, "GatedRepo", f"Access to model {org}/{name} is restricted.")
        elif revision not in ("main", COMMIT):
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif is_api:
            self.describe(folder, rest)
        elif not (folder / "/".join(rest[2:])).is_file():
            self.refuse(404, "EntryNotFound", "Entry not found")
        else:
            self.send_file(folder / "/".join(rest[2:]), name)

    def refuse(self, status: int, code: str | None, message: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def describe(self, folder: Path, rest: list[str]) -> None:
        files = [path for path in sorted(folder.iterdir()) if path.is_file()]
        if rest and rest[0] == "tree" and len(rest) > 2:  # a subfolder; there are none
            return self.refuse(404, "EntryNotFound", "Entry not found")
        if rest and rest[0] == "tree":
            entries = [
                {"type": "file", "path": path.name, "size": path.stat().st_size, "oid": _digest(path)} for path in files
            ]
            return self.answer(json.dumps(entries).encode())
        siblings = [{"rfilename": path.name} for path in files]
        model = f"{folder.parent.name}/{folder.name}"
        return self.answer(json.dumps({"_id": "0", "id": model, "sha": COMMIT, "siblings": siblings}).encode())

    def answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def send_file(self, path: Path, name: str) -> None:
        data = path.read_bytes()
        wanted = self.headers.get("Range")
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("ETag", f'"{_digest(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cuts = self.server.cuts.get(self.path, 0)
        if path.suffix == ".safetensors" and (name == "cut-forever" or (name == "cut" and cuts == 0)):
            self.server.cuts[self.path] = cuts + 1
            # Half of the file, and after that nothing any more.
            self.wfile.write(data[: len(data) // 2] if cuts == 0 else b"")
            self.close_connection = True
        else:
            self.wfile.write(data[start:])


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
