"""A stand-in of the Hugging Face hub's HTTP API, as far as creating, committing to and fetching model repositories go.

Written from what huggingface-hub asks for; it keeps everything in memory, and every commit is a revision. Weights go by
git's large file storage (LFS), as on the hub: they are put, and got, at an address of their own.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_stand_in"


class Repository:
    """Revisions, each with its files by name; the newest is `main`."""

    def __init__(self, private: bool) -> None:
        self.private = private
        self.revisions: dict[str, dict[str, bytes]] = {}

    def commit(self, new: dict[str, bytes]) -> str:
        files = {**(list(self.revisions.values())[-1] if self.revisions else {}), **new}
        name = hashlib.sha1(repr((len(self.revisions), sorted(files))).encode()).hexdigest()
        self.revisions[name] = files
        return name

    def named(self, revision: str) -> str | None:
        if revision == "main" and self.revisions:
            return list(self.revisions)[-1]
        return revision if revision in self.revisions else None


class Hub:
    """Its repositories, its address, and what it was asked."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.full = False
        self.asked: list[tuple[str, str]] = []
        self.address = ""

    def answer(self, method: str, path: str, body: bytes, token: str | None) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body."""
        self.asked.append((method, path))
        parts = [unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "large" and method == "PUT":
            if self.full or hashlib.sha256(body).hexdigest() != parts[1]:
                return 507 if self.full else 400, {}, b""
            self.large[parts[1]] = body
            return 200, {}, b""
        if parts[0] == "large":
            return 200, {"ETag": f'"{parts[1]}"'}, self.large[parts[1]]
        if method == "POST" and token != TOKEN:
            return 401, {}, b'{"error": "Invalid username or password."}'
        if parts[2:] == ["info", "lfs", "objects", "batch"]:
            objects = [
                file
                if file["oid"] in self.large
                else {**file, "actions": {"upload": {"href": self._large(file["oid"])}}}
                for file in json.loads(body)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if parts[:2] == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            wanted = json.loads(body)
            name = f"{wanted['organization']}/{wanted['name']}" if wanted.get("organization") else wanted["name"]
            code = 409 if name in self.repositories else 200
            private = wanted.get("private") or wanted.get("visibility") == "private"
            if name not in self.repositories:
                self.repositories[name] = Repository(bool(private))
                self.repositories[name].commit({".gitattributes": b""})
            return self._json({"url": f"{self.address}/{name}", "name": name, "id": name}, code)
        if parts[:2] == ["api", "models"]:
            return self._of_model("/".join(parts[2:4]), parts[4:], body, token)
        if len(parts) > 4 and parts[2] == "resolve":
            return self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]), token)
        return self._json({"error": path}, 404)

    def _of_model(
        self, name: str, parts: list[str], body: bytes, token: str | None
    ) -> tuple[int, dict[str, str], bytes]:
        known = self._seen(name, token)
        if known is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if parts[:1] == ["preupload"]:
            files = [
                {"path": file["path"], "uploadMode": _mode(file["path"]), "shouldIgnore": False, "oid": None}
                for file in json.loads(body)["files"]
            ]
            return self._json({"files": files})
        if parts[:1] == ["commit"]:
            lines = [json.loads(line) for line in body.splitlines() if line.strip()]
            files = {
                line["value"]["path"]: self.large[line["value"]["oid"]]
                if line["key"] == "lfsFile"
                else base64.b64decode(line["value"]["content"])
                for line in lines[1:]
            }
            oid = known.commit(files)
            return self._json({"success": True, "commitOid": oid, "commitUrl": f"{self.address}/{name}/commit/{oid}"})
        revision = known.named(parts[1] if parts[:1] == ["revision"] else "main")
        if revision is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        files = known.revisions[revision]
        if parts[:1] == ["tree"]:
            revision = known.named(parts[1]) or revision
            return self._json([_entry(name, content) for name, content in known.revisions[revision].items()])
        siblings = [{"rfilename": file} for file in files]
        return self._json(
            {"id": name, "modelId": name, "sha": revision, "siblings": siblings, "private": known.private}
        )

    def _file(self, name: str, revision: str, file: str, token: str | None) -> tuple[int, dict[str, str], bytes]:
        known = self._seen(name, token)
        if known is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b""
        found = known.named(revision)
        if found is None or file not in known.revisions[found]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        content = known.revisions[found][file]
        if (oid := hashlib.sha256(content).hexdigest()) in self.large:
            linked = {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            return 302, {"Location": self._large(oid), "X-Repo-Commit": found, **linked}, b""
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": found}
        return 200, headers, content

    def _large(self, oid: str) -> str:
        return f"{self.address}/large/{oid}".replace("127.0.0.1", "localhost")  # another host, as on the hub

    def _seen(self, name: str, token: str | None) -> Repository | None:
        """A private repository is shown to nobody else."""
        known = self.repositories.get(name)
        return None if known is None or (known.private and token != TOKEN) else known

    def _json(self, value: Any, code: int = 200) -> tuple[int, dict[str, str], bytes]:
        return code, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _mode(path: str) -> str:
    return "lfs" if path.endswith(".safetensors") else "regular"


def _entry(name: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}


@contextmanager
def serving() -> Iterator[Hub]:
    """The hub, at its address, while the context lasts."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self._body()
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            code, headers, content = hub.answer(
                "GET" if self.command == "HEAD" else self.command, urlsplit(self.path).path, body, token
            )
            self.send_response(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        do_GET = do_POST = do_PUT = do_HEAD = _answer  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def standing_in(cache: Path, patch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The hub, taken by huggingface-hub for the real one, with a user who is logged in."""
    with serving() as hub, _imported_anew():
        patch.setenv("HF_ENDPOINT", hub.address)
        patch.setenv("HF_HOME", str(cache))
        patch.setenv("HF_TOKEN", TOKEN)
        for name in ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS"):
            patch.setenv(name, "1")
        yield hub


@contextmanager
def _imported_anew() -> Iterator[None]:
    """It reads its environment when it is imported."""
    for _ in range(2):
        for name in [name for name in sys.modules if name.partition(".")[0] == "huggingface_hub"]:
            del sys.modules[name]
        if _ == 0:
            yield
