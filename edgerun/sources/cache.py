"""The cache: packages made from checkpoints, downloads and kernels, under one root that can be listed and cleared.

models/     one model package a folder; the folder's name says what it was made from, so that it is never stale
downloads/  what the catalogue fetched
kernels/    object files compiled on this machine
columns/    weights column by column, for activation sparsity
index/      small files that map what a user types to a folder of models/
locks/      one lock a model, so that two processes make it once
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from edgerun.errors import EdgerunError, HubError
from edgerun.progress import Progress, silent
from edgerun_kernels.build.objects import cache_root

__all__ = ["CacheEntry", "cache_root", "clear", "commit_folder", "entries", "find", "lock", "package_folder", "record"]

EXPORT_REVISION = 4
"""To be raised whenever packages exported by older code should be made anew."""

RECEIPT = "edgerun-download.json"
"""The file that marks a folder of downloads/ as complete, and as ours to delete."""

_FOLDER = re.compile(r"(?P<label>.+)\.(?P<quant>[a-z0-9_]+)\.(?P<digest>[0-9a-f]{12})\.r\d+")
_UNFINISHED = re.compile(r"\.(?:partial|old)(?:-(\d+))?$")


@dataclass(frozen=True)
class CacheEntry:
    """One thing in the cache. kind: "models", "downloads", "kernels" or "columns"; label: the model's name in it;
    bytes: what its files hold; modified: seconds since the epoch."""

    kind: str
    name: str
    label: str
    path: Path
    bytes: int
    modified: float


def package_folder(label: str, quant: str, digest: str) -> Path:
    """Where the package of a checkpoint goes; `digest` (hex, at least 12 digits) identifies its content."""
    return cache_root() / "models" / f"{_safe(label)}.{_safe(quant).lower()}.{digest[:12]}.r{EXPORT_REVISION}"


def is_package(folder: Path) -> bool:
    """Whether a folder is a finished model package, as far as its file names tell."""
    return (folder / "edgerun.json").is_file() and (folder / "model.onnx").is_file()


def find(key: str) -> Path | None:
    """The package folder that `record` noted for a key, if it is still there."""
    try:
        entry = json.loads(_index_file(key).read_bytes())
        name = entry["package"]
        if entry["key"] != key or not isinstance(name, str) or Path(name).name != name:
            return None
    except (OSError, ValueError, LookupError, TypeError):
        return None
    folder = cache_root() / "models" / name
    return folder if is_package(folder) else None


def record(key: str, folder: Path) -> None:
    """Note that `folder`, which lies in models/, is what `key` stands for."""
    path = _index_file(key)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            beside.write_text(json.dumps({"key": key, "package": folder.name}))
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def entries() -> list[CacheEntry]:
    """What the cache holds, unfinished things of interrupted runs included. Other people's files are not listed."""
    found = []
    for kind in ("models", "downloads", "kernels", "columns"):
        folder = cache_root() / kind
        # A link may lead anywhere: what lies behind it is not looked at, so it cannot be deleted either.
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in sorted(folder.iterdir()):
            if not _is_ours(kind, path):
                continue
            match = _FOLDER.fullmatch(_UNFINISHED.sub("", path.name))
            label = match["label"] if match else _UNFINISHED.sub("", path.name)
            with contextlib.suppress(FileNotFoundError):  # another process may be clearing too
                found.append(CacheEntry(kind, path.name, label, path, _bytes(path), path.lstat().st_mtime))
    return found


def clear(name: str | None = None) -> list[CacheEntry]:
    """Delete one model with its downloads (by its name, its repository, or its folder's name), or everything; returns
    what was deleted. Only what edgerun itself put there is touched, and links are removed, never followed.

    Raises `HubError` if nothing has that name or if something cannot be deleted.
    """
    listed = entries()
    chosen = listed if name is None else [e for e in listed if _safe(name) in (e.name, e.label)]
    if name is not None and not chosen:
        names = ", ".join(sorted({e.label for e in listed})) or "nothing"
        raise HubError(f"{cache_root()}: the cache has no {name}; it has {names}")
    for entry in chosen:
        with writing(entry.path):
            remove(entry.path)
    index = cache_root() / "index"
    if name is None and index.is_dir() and not index.is_symlink():
        for path in index.glob("*.json"):
            path.unlink(missing_ok=True)
    return chosen


def remove(path: Path) -> None:
    """Delete a file, a link (not what it leads to) or a folder, if it is there."""
    if path.is_symlink() or not path.is_dir():
        path.unlink(missing_ok=True)
    else:
        # Renamed first, so that no other process opens a folder that is half gone.
        gone = path.with_name(f"{path.name}.old-{os.getpid()}") if not _UNFINISHED.search(path.name) else path
        if gone != path:
            path.rename(gone)
        shutil.rmtree(gone)


def remove_unfinished(folder: Path) -> None:
    """Delete what killed processes left beside `folder`. To be called under its lock, which says that none is alive."""
    if folder.parent.is_dir():
        for path in folder.parent.iterdir():
            if path.name.startswith(folder.name) and _UNFINISHED.fullmatch(path.name[len(folder.name) :]):
                shutil.rmtree(path, ignore_errors=True)


def commit_folder(partial: Path, folder: Path) -> None:
    """Put a finished folder in its place, at once; an older one there is deleted."""
    with writing(folder):
        if folder.exists():
            remove(folder)
        partial.rename(folder)


@contextlib.contextmanager
def lock(name: str, progress: Progress = silent) -> Iterator[None]:
    """Hold the lock called `name` against other processes and threads, waiting for it as long as it takes."""
    import filelock

    path = cache_root() / "locks" / f"{_safe(name)}.lock"
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Not the thread-local kind: two threads of one process must wait for each other too.
        held = filelock.FileLock(path, thread_local=False)
        try:
            held.acquire(timeout=0)
        except filelock.Timeout:
            progress(0, 0, f"waiting for another process that is making {name}")
            held.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        held.release()


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns what a disk can refuse into one line that names `path`."""
    try:
        yield
    except EdgerunError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HubError(
                f"{path}: no space left on the disk; free some (`edgerun cache clear`), or set EDGERUN_CACHE to a "
                "folder on another disk"
            ) from error
        raise HubError(
            f"{path}: cannot be written ({error.strerror or error}); set EDGERUN_CACHE to a folder that can"
        ) from error


def _index_file(key: str) -> Path:
    return cache_root() / "index" / f"{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}.json"


def _safe(name: str) -> str:
    """A name as one component of a path: `org/model` becomes `org--model`."""
    return re.sub(r"[^\w.+-]", "_", name.replace("/", "--")).lstrip(".") or "_"


def _is_ours(kind: str, path: Path) -> bool:
    if kind == "kernels":
        return re.fullmatch(r"[0-9a-f]{32}", path.name) is not None and not path.is_symlink() and path.is_dir()
    if kind == "columns" and path.suffix == ".columns":
        return (
            re.fullmatch(r"[0-9a-f]{32}\.columns", path.name) is not None and path.is_file() and not path.is_symlink()
        )
    if match := _UNFINISHED.search(path.name):
        return match[1] is None or not _alive(int(match[1]))
    return not path.is_symlink() and (path / ("edgerun.json" if kind == "models" else RECEIPT)).is_file()


def _alive(pid: int) -> bool:
    """Whether a process that is writing here still runs. Unknown, so yes, where signal 0 isn't a mere question."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return pid != os.getpid()


def _bytes(path: Path) -> int:
    if path.is_symlink() or not path.is_dir():
        return path.lstat().st_size
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += os.lstat(os.path.join(folder, file)).st_size
    return total
