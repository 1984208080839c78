"""The cache: names, listing, clearing without harm, locks between processes."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgerun.errors import HubError
from edgerun.sources import cache


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def package(label: str = "org/model", digest: str = "ab" * 32) -> Path:
    folder = cache.package_folder(label, "auto", digest)
    folder.mkdir(parents=True)
    (folder / "edgerun.json").write_text("{}")
    (folder / "model.onnx").write_bytes(b"x" * 98)
    return folder


def test_names_are_safe_components() -> None:
    for label in ("org/model", "../../etc", "a b\\c:d", "..", "é" * 3):
        folder = cache.package_folder(label, "auto", "0" * 64)
        assert folder.parent == cache.cache_root() / "models" and not folder.name.startswith(".")


def test_an_empty_cache_is_no_error() -> None:
    assert cache.entries() == [] and cache.clear() == []


def test_listing_and_clearing_one(root: Path) -> None:
    first, second = package(), package("smollm2")
    (root / "downloads" / "smollm2").mkdir(parents=True)
    (root / "downloads" / "smollm2" / cache.RECEIPT).write_text("{}")
    assert {(e.kind, e.label, e.bytes) for e in cache.entries()} == {
        ("models", "org--model", 100),
        ("models", "smollm2", 100),
        ("downloads", "smollm2", 2),
    }
    assert {e.kind for e in cache.clear("smollm2")} == {"models", "downloads"}
    assert first.exists() and not second.exists()
    with pytest.raises(HubError, match=r"has no smollm2; it has org--model"):
        cache.clear("smollm2")
    assert [e.path for e in cache.clear("org/model")] == [first]


def test_clearing_touches_nothing_of_others(root: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "edgerun.json").write_text("precious")
    made = package()
    (made / "link").symlink_to(outside)
    foreign = root / "models" / "photos"
    foreign.mkdir()
    (foreign / "a.jpg").write_text("precious")
    (root / "models" / "linked").symlink_to(outside)
    (root / "models" / "x.partial").symlink_to(outside)
    (root / "notes.txt").write_text("precious")
    (root / "downloads").symlink_to(outside)
    cache.clear()
    assert not made.exists() and not (root / "models" / "x.partial").is_symlink()
    assert (outside / "edgerun.json").exists() and (foreign / "a.jpg").exists() and (root / "notes.txt").exists()
    with pytest.raises(HubError, match="has no"):
        cache.clear("../../outside")


def test_what_killed_processes_left_is_cleared_and_what_others_write_is_not(root: Path) -> None:
    folder = package()
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    dead = folder.with_name(f"{folder.name}.partial-{child.pid}")
    alive = folder.with_name(f"{folder.name}.partial-{os.getppid()}")
    dead.mkdir()
    alive.mkdir()
    cache.clear()
    assert not dead.exists() and alive.exists() and not folder.exists()


def test_the_index_finds_what_is_there_and_nothing_else(root: Path) -> None:
    folder = package()
    assert cache.find("key") is None
    cache.record("key", folder)
    assert cache.find("key") == folder and cache.find("other") is None
    note = next((root / "index").iterdir())
    for damage in ("", "[]", "{}", '{"key": "key", "package": "../x"}', '{"key": "key", "package": 3}'):
        note.write_text(damage)
        assert cache.find("key") is None
    cache.record("key", folder)
    (folder / "model.onnx").unlink()
    assert cache.find("key") is None


def test_commit_replaces_at_once(tmp_path: Path) -> None:
    folder = package()
    partial = folder.with_name("new.partial")
    partial.mkdir()
    (partial / "edgerun.json").write_text("new")
    cache.commit_folder(partial, folder)
    assert [path.name for path in folder.iterdir()] == ["edgerun.json"] and not partial.exists()


def test_locks_keep_threads_and_processes_apart(root: Path) -> None:
    script = (
        "import sys, time\nfrom edgerun.sources.cache import lock\n"
        "with lock('m'):\n    print('held', flush=True)\n    sys.stdin.read()\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.Popen(
        [sys.executable, "-c", script], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout and child.stdin and child.stdout.readline() == b"held\n"
    heard: list[str] = []
    order: list[str] = []

    def work(name: str) -> None:
        with cache.lock("m", lambda done, total, what: heard.append(what)):
            order.append(f"{name} in")
            time.sleep(0.05)
            order.append(f"{name} out")

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    assert order == [] and heard == ["waiting for another process that is making m"] * 2
    child.stdin.close()
    child.wait()
    for thread in threads:
        thread.join(20)
    assert [o.split()[1] for o in order] == ["in", "out", "in", "out"]
    child.stdout.close()


def test_disks_that_refuse() -> None:
    with pytest.raises(HubError, match=r"^x: no space left on the disk; free some"), cache.writing(Path("x")):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(HubError, match=r"^x: cannot be written \(Read-only file"), cache.writing(Path("x")):
        raise OSError(errno.EROFS, "Read-only file system")


def test_a_root_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "file"))
    assert cache.entries() == []
    with pytest.raises(HubError, match="set EDGERUN_CACHE"), cache.lock("m"):
        pass
