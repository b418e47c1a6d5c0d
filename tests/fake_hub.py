"""A hub on this machine: the API, /resolve/ addresses that redirect, and a storage host.

Two servers on two ports, as the real hub has its storage elsewhere. Faults are queued: each request
of their kind takes the next one.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "0123"


@dataclass
class Repo:
    """files: path -> bytes, or a Hole. listed: path -> what the API's list says instead."""

    files: dict[str, Any]
    commit: str = COMMIT
    token: str | None = None
    gated: bool = False
    small: tuple[str, ...] = ()  # kept in git itself, not in LFS
    listed: dict[str, dict[str, Any]] = field(default_factory=dict)
    details: bool = True  # whether the list has sizes and checksums
    etags: dict[str, str] = field(default_factory=dict)  # instead of the true checksums


class Hole:
    """A sparse file as a repository's content, read where it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return self.path.stat().st_size

    def __getitem__(self, part: slice) -> bytes:
        with self.path.open("rb") as file:
            file.seek(part.start or 0)
            return file.read(part.stop - file.tell())


@dataclass
class Answer:
    """A fault: this status instead of the right answer."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b"{}"


@dataclass
class Storage:
    """How the storage host serves one request."""

    cut_after: int | None = None  # bytes, then the connection breaks
    corrupt: bool = False
    ignores_range: bool = False
    extra_headers: dict[str, str] = field(default_factory=dict)
    longer: bytes = b""
    wait: threading.Event | None = None  # before the second half of the body


class FakeHub:
    """Use as a context manager. requests: (host, method, path, headers), in order of arrival."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.api_faults: list[Answer] = []
        self.resolve_faults: list[Answer] = []
        self.storage_faults: list[Storage | Answer] = []
        self.always: Storage | None = None
        self.requests: list[tuple[str, str, str, dict[str, str]]] = []
        self.served = 0  # bytes of files
        self.half_sent = threading.Event()
        self._hub = _server(self, _HubHandler)
        self._storage = _server(self, _StorageHandler)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._hub.server_port}"

    @property
    def storage(self) -> str:
        return f"http://localhost:{self._storage.server_port}"

    def paths(self, host: str) -> list[str]:
        """Paths of the requests to "hub" or "storage"."""
        return [path for where, _, path, _ in self.requests if where == host]

    def ranges(self) -> list[str]:
        """Range headers that reached the storage host."""
        return [h.get("range", "") for where, _, _, h in self.requests if where == "storage"]

    def __enter__(self) -> FakeHub:
        for server in (self._hub, self._storage):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        for server in (self._hub, self._storage):
            server.shutdown()
            server.server_close()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def etag(repo: Repo, path: str) -> str:
    if path in repo.etags:
        return repo.etags[path]
    data = repo.files[path]
    if path in repo.small:
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    return sha256(data)


def _server(hub: FakeHub, handler: type[_Handler]) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (handler,), {"hub": hub}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    return server


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    host = ""
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_HEAD(self) -> None:
        self._serve()

    def _serve(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((self.host, self.command, self.path, headers))
        self.serve(unquote(urlsplit(self.path).path), headers)

    def serve(self, path: str, headers: dict[str, str]) -> None:
        raise NotImplementedError

    def answer(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def fault(self, faults: list[Any]) -> bool:
        if not faults or not isinstance(faults[0], Answer):
            return False
        fault = faults.pop(0)
        self.answer(fault.status, fault.headers, fault.body)
        return True


class _HubHandler(_Handler):
    host = "hub"

    def serve(self, path: str, headers: dict[str, str]) -> None:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            if not self.fault(self.hub.api_faults):
                self._api(match[1], match[2], headers)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            if not self.fault(self.hub.resolve_faults):
                self._resolve(match[1], match[2], match[3], headers)
        else:
            self.answer(404, {})

    def _repo(self, name: str, revision: str | None, headers: dict[str, str]) -> Repo | None:
        repo = self.hub.repos.get(name)
        allowed = repo is not None and (
            repo.gated
            or repo.token is None
            or headers.get("authorization") == f"Bearer {repo.token}"
        )
        if repo is None or not allowed:
            self.answer(401, {"X-Error-Code": "RepoNotFound"}, b'{"error": "Repository not found"}')
            return None
        if revision not in (None, "main", repo.commit):
            self.answer(404, {"X-Error-Code": "RevisionNotFound"}, b'{"error": "no revision"}')
            return None
        return repo

    def _api(self, name: str, revision: str | None, headers: dict[str, str]) -> None:
        repo = self._repo(name, revision, headers)
        if repo is None:
            return
        siblings = []
        for path, data in repo.files.items():
            entry: dict[str, Any] = {"rfilename": path}
            if repo.details:
                entry |= {"size": len(data), "blobId": "0" * 40}
                if path in repo.small:
                    entry["blobId"] = etag(repo, path)
                else:
                    entry["lfs"] = {
                        "size": len(data),
                        "sha256": etag(repo, path),
                        "pointerSize": 134,
                    }
            siblings.append(entry | repo.listed.get(path, {}))
        body = {"id": name, "sha": repo.commit, "siblings": siblings}
        headers = {"Content-Type": "application/json", "X-HF-Warning": "topic; words of the hub"}
        self.answer(200, headers, json.dumps(body).encode())

    def _resolve(self, name: str, revision: str, path: str, headers: dict[str, str]) -> None:
        repo = self._repo(name, revision, headers)
        if repo is None:
            return
        if repo.gated and headers.get("authorization") != f"Bearer {repo.token}":
            self.answer(403, {"X-Error-Code": "GatedRepo", "X-Error-Message": "gated"}, b"{}")
        elif path not in repo.files:
            self.answer(404, {"X-Error-Code": "EntryNotFound"}, b"{}")
        else:
            self.answer(
                302,
                {
                    "Location": f"{self.hub.storage}/{name}/{path}?signature=1",
                    "X-Repo-Commit": repo.commit,
                    "X-Linked-Size": str(len(repo.files[path])),
                    "X-Linked-Etag": f'"{etag(repo, path)}"',
                },
            )


class _StorageHandler(_Handler):
    host = "storage"

    def serve(self, path: str, headers: dict[str, str]) -> None:
        if self.fault(self.hub.storage_faults):
            return
        how = self.hub.always or Storage()
        if self.hub.storage_faults:
            how = self.hub.storage_faults.pop(0)  # type: ignore[assignment]
        owner, name, file = path[1:].split("/", 2)
        data = self.hub.repos[f"{owner}/{name}"].files[file]
        if how.corrupt:
            data = data[:-1] + bytes([data[-1] ^ 1])
        total, start, end = len(data), 0, len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", headers.get("range", ""))
        status = 200
        if match and not how.ignores_range:
            start, end = int(match[1]), min(total, int(match[2] or total - 1) + 1)
            status = 206
            if start >= total:
                self.answer(416, {"Content-Range": f"bytes */{total}"})
                return
        body = data[start:end] + how.longer
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status == 206:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{total}")
        for key, value in how.extra_headers.items():
            self.send_header(key, value)
        self.end_headers()
        sent = body if how.cut_after is None else body[: how.cut_after]
        if how.wait is not None:
            self.wfile.write(sent[: len(sent) // 2])
            self.wfile.flush()
            self.hub.half_sent.set()
            how.wait.wait(20)
            sent = sent[len(sent) // 2 :]
        self.hub.served += len(sent)  # before the client can have it all and look
        self.wfile.write(sent)
        if how.cut_after is not None:
            self.wfile.flush()
            self.close_connection = True
