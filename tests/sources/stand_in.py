"""A stand-in for the Hugging Face Hub on 127.0.0.1: the parts of its HTTP API that a download uses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    """files: path -> content. access: "open", "private" (needs TOKEN) or "gated" (refuses all)."""

    files: dict[str, bytes]
    access: str = "open"

    @property
    def commit(self) -> str:
        whole = hashlib.sha1()
        for path, content in sorted(self.files.items()):
            whole.update(path.encode() + b"\0" + content)
        return whole.hexdigest()


@dataclass
class Hub:
    """The server. requests: "METHOD path [range]" of every request. break_after: path -> how many bytes of it to send
    before the connection is cut, the next time. delay:
    seconds to wait before every 64 KiB of a file. status: answer everything with it."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    break_after: dict[str, int] = field(default_factory=dict)
    delay: float = 0.0
    status: int | None = None

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append(" ".join(filter(None, [self.command, path, self.headers.get("Range")])))
        if self.state.status is not None:
            return self._send(self.state.status, b"", body)
        api = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
        file = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        match = api or file
        repository = self.state.repositories.get(match[1]) if match else None
        authorised = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if match is None or repository is None or (repository.access == "private" and not authorised):
            return self._send(404 if authorised else 401, b"", body, {"X-Error-Code": "RepoNotFound"})
        if repository.access == "gated" and (file or (api and api[2] == "tree")):
            return self._send(403, b"", body, {"X-Error-Code": "GatedRepo"})
        revision = match[3] if api else match[2]
        if revision not in (None, "main", repository.commit):
            return self._send(404, b"", body, {"X-Error-Code": "RevisionNotFound"})
        if api:
            return self._send(200, json.dumps(_listing(match[1], repository, api[2])).encode(), body)
        assert file
        content = repository.files.get(file[3])
        headers = {"X-Repo-Commit": repository.commit}
        if content is None:
            return self._send(404, b"", body, headers | {"X-Error-Code": "EntryNotFound"})
        self._send_file(file[3], content, body, headers)

    def _send_file(self, path: str, content: bytes, body: bool, headers: dict[str, str]) -> None:
        headers |= {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        status = 200
        if wanted and body:
            start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        limit = self.state.break_after.pop(path, None) if body else None
        self._send(status, content, body, headers, limit)

    def _send(
        self, status: int, content: bytes, body: bool, headers: dict[str, str] | None = None, limit: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            content = content[:limit]
            step = 1 << 16 if self.state.delay else max(len(content), 1)
            try:
                for start in range(0, len(content), step):
                    time.sleep(self.state.delay)
                    self.wfile.write(content[start : start + step])
            except ConnectionError:  # the client has gone
                self.close_connection = True
            if limit is not None:
                self.close_connection = True


def _listing(name: str, repository: Repository, kind: str | None) -> Any:
    if kind == "tree":
        return [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in repository.files.items()
        ]
    return {
        "id": name,
        "modelId": name,
        "sha": repository.commit,
        "private": repository.access == "private",
        "siblings": [{"rfilename": path} for path in repository.files],
        "tags": [],
        "downloads": 0,
        "likes": 0,
    }
