"""A folder that appears whole or not at all: written beside its place, synced, and renamed."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from edgerun.errors import CheckpointError


@contextlib.contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yields OUT.partial-<pid> to write into; puts it in the place of `out` if the body succeeds.

    On any exception, also KeyboardInterrupt, the partial folder is removed and an old `out` stays as it was. A full
    disk and other OSErrors become one CheckpointError.
    """
    out = Path(os.path.abspath(out))
    partial = out.with_name(f"{out.name}.partial-{os.getpid()}")
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: exists and is not a folder; choose another place for the package")
    if out.is_dir() and any(out.iterdir()) and not (out / "edgerun.json").exists():
        raise CheckpointError(f"{out}: a folder that is not a model package; it is left alone: choose another place")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        _sync(partial)
        _replace(partial, out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CheckpointError(f"{out}: no space left on the disk; free some and export again") from None
        raise CheckpointError(f"{out}: cannot be written ({error.strerror or error})") from error
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _replace(partial: Path, out: Path) -> None:
    """rename(2) replaces only an empty folder: a full one steps aside first, and back again if that fails."""
    old = out.with_name(f"{out.name}.old-{os.getpid()}")
    shutil.rmtree(old, ignore_errors=True)
    aside = False
    try:
        if out.exists():
            out.rename(old)
            aside = True
        partial.rename(out)
    except BaseException:
        if aside and not out.exists():
            old.rename(out)
        raise
    _sync_path(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        _sync_path(path)
    _sync_path(folder)


def _sync_path(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    try:
        os.fsync(file)
        # What is written bit by bit is cached in small pages. Read again, it comes in those that the reader asks for,
        # and decoding is a tenth to a third faster with large ones.
        if (forget := getattr(os, "posix_fadvise", None)) is not None:
            with contextlib.suppress(OSError):  # a file system that caches nothing
                forget(file, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(file)
