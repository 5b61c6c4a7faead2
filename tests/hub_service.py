"""A stand-in for the Hugging Face Hub over local HTTP: refs, files of a revision, downloads with ranges, faults on demand.

It answers what `huggingface_hub` and our downloads ask, in the form that huggingface.co answers: LFS files are redirected
to another path, as to the Hub's content delivery network, and small files are known by git's hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

_LFS_FROM = 10_000  # bytes: files of this size and more are LFS files here


@dataclass
class Fault:
    """What goes wrong with the next `times` requests whose path contains `where`: a status, or one of `cut` (half of the
    body, then the connection ends), `garble` (other bytes), `no-range` (the whole file whatever was asked)."""

    where: str
    what: int | str
    times: int = 1
    retry_after: str | None = None


@dataclass
class Revision:
    commit: str
    files: dict[str, bytes]


@dataclass
class Repo:
    branches: dict[str, Revision] = field(default_factory=dict)
    tags: dict[str, Revision] = field(default_factory=dict)
    licence: str | None = "apache-2.0"


class Service(ThreadingHTTPServer):
    """A Hub whose repositories and faults a test sets; `asked` holds (method, path, Range) of every request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, str, str]] = []
        self.before: Callable[[str], None] = lambda path: None  # called with the path of each request
        self.ending = threading.Event()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def publish(self, repo: str, name: str, source: Path | dict[str, bytes], *, tag: bool = False) -> str:
        """A branch or tag with these files; its commit."""
        files = source if isinstance(source, dict) else {f.name: f.read_bytes() for f in sorted(source.iterdir()) if f.is_file()}
        commit = hashlib.sha1(f"{repo} {name} {sorted((n, hashlib.sha1(c).hexdigest()) for n, c in files.items())}".encode()).hexdigest()
        there = self.repos.setdefault(repo, Repo())
        (there.tags if tag else there.branches)[name] = Revision(commit, files)
        return commit

    def downloads(self, part: str = "") -> list[str]:
        """Paths below resolve/ that were asked for, redirections not counted twice."""
        found = (path.partition("/resolve/")[2] for method, path, _ in self.asked if method == "GET" and "/resolve/" in path)
        return [path for path in found if part in path]

    def revision(self, repo: Repo, name: str) -> Revision | None:
        every = {**repo.tags, **repo.branches}
        return every.get(name) or next((revision for revision in every.values() if revision.commit == name), None)


class Handler(BaseHTTPRequestHandler):
    server: Service
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        self.server.asked.append((self.command, path, self.headers.get("Range", "")))
        self.server.before(path)
        fault = next((fault for fault in self.server.faults if fault.where in path and fault.times > 0), None)
        if fault is not None:
            fault.times -= 1
            if isinstance(fault.what, int):
                extra = {"Retry-After": fault.retry_after} if fault.retry_after else {}
                self.reply(fault.what, b"no", extra)
                return
        self.route(path, fault.what if fault else "")

    def route(self, path: str, fault: int | str) -> None:
        if found := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)(?:/(refs)|/revision/(.+))?", path):
            repo = self.server.repos.get(found[1])
            if repo is None:
                self.reply(404, b"", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
            elif found[2]:
                self.refs(repo)
            else:
                self.info(found[1], repo, unquote(found[3] or "main"))
        elif found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path):
            self.resolve(found[1], unquote(found[2]), found[3], fault)
        elif found := re.fullmatch(r"/cdn/(\w+)/(.+)", path):
            self.content(self.lfs(found[1]), fault)
        else:
            self.reply(404, b"")

    def refs(self, repo: Repo) -> None:
        def listed(kind: str, revisions: dict[str, Revision]) -> list[dict[str, str]]:
            return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": r.commit} for name, r in revisions.items()]

        self.json({"branches": listed("heads", repo.branches), "tags": listed("tags", repo.tags), "converts": []})

    def info(self, name: str, repo: Repo, asked: str) -> None:
        revision = self.server.revision(repo, asked)
        if revision is None:
            self.reply(404, b"", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return
        siblings = []
        for file, content in revision.files.items():
            git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
            sibling: dict[str, object] = {"rfilename": file, "size": len(content), "blobId": git}
            if len(content) >= _LFS_FROM:
                sibling["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append(sibling)
        card = {"cardData": {"license": repo.licence}} if repo.licence and asked == "main" else {}
        self.json({"id": name, "sha": revision.commit, "lastModified": "2026-01-02T03:04:05.000Z", "siblings": siblings, **card})

    def resolve(self, name: str, asked: str, file: str, fault: int | str) -> None:
        repo = self.server.repos.get(name)
        revision = self.server.revision(repo, asked) if repo else None
        if revision is None or file not in revision.files:
            self.reply(404, b"", {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        content = revision.files[file]
        if len(content) < _LFS_FROM:
            self.content(content, fault, {"X-Repo-Commit": revision.commit})
            return
        sha256 = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Etag": f'"{sha256}"', "X-Linked-Size": str(len(content)), "X-Repo-Commit": revision.commit}
        self.reply(302, b"", {"Location": f"/cdn/{sha256}/{file}", **linked})

    def lfs(self, sha256: str) -> bytes:
        every = (revision for repo in self.server.repos.values() for revision in (*repo.branches.values(), *repo.tags.values()))
        contents = (content for revision in every for content in revision.files.values())
        return next(content for content in contents if hashlib.sha256(content).hexdigest() == sha256)

    def content(self, content: bytes, fault: int | str, headers: dict[str, str] | None = None) -> None:
        if fault == "garble":
            content = content[:-1] + bytes([content[-1] ^ 1])
        status, first = 200, 0
        if (asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))) and fault != "no-range":
            status, first = 206, int(asked[1])
        extra = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if status == 206 else {}
        self.reply(status, content[first:], {"Accept-Ranges": "bytes", **extra, **(headers or {})}, cut=fault == "cut")

    def json(self, value: object) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(ConnectionError):
                self.wfile.write(body[: len(body) // 2] if cut else body)
        self.close_connection = self.close_connection or cut

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@contextlib.contextmanager
def hub_service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """The service, which `huggingface_hub` in this process takes for the Hub, for the length of the block."""
    import huggingface_hub

    with Service() as running:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", running.endpoint)
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield running
        finally:
            huggingface_hub.close_session()  # its idle connections
            running.shutdown()
            thread.join()
