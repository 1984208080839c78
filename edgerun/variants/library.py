"""Where variants that have a name lie: variants/ beside the cache's other folders, which `edgerun cache clear` leaves
alone, because nothing could make them again."""

from __future__ import annotations

import os
from pathlib import Path

from edgerun.errors import VariantError
from edgerun_kernels.build.objects import cache_root

ENDING = ".safetensors"


def folder() -> Path:
    """The folder of the named variants."""
    return cache_root() / "variants"


def place(name: str | os.PathLike[str]) -> Path:
    """The file that a name or a path stands for, whether it is there or not: a text without slashes that does not end
    in .safetensors is a name. Raises VariantError for a text that is neither."""
    text = os.fspath(name)
    if not text or "\0" in text:
        raise VariantError("the variant's name is empty; give a name or the path of a variant file")
    path = Path(text).expanduser()
    if not isinstance(name, str) or "/" in text or os.sep in text or text.endswith(ENDING) or path.is_file():
        return path
    if text.startswith("."):
        raise VariantError(f"{text}: no name for a variant; give one without a leading dot, or a path")
    return folder() / f"{text}{ENDING}"


def find(name: str | os.PathLike[str]) -> Path:
    """The file that a name or a path stands for, as ``place``; it must be there. Raises VariantError."""
    path = place(name)
    if path.is_file():
        return path
    names = ", ".join(listed()) or "none"
    raise VariantError(f"{os.fspath(name)}: no such variant; there are {names} in {folder()}, or give a file's path")


def listed() -> dict[str, Path]:
    """The variants that have a name, by name."""
    if not folder().is_dir():
        return {}
    return {path.name.removesuffix(ENDING): path for path in sorted(folder().glob(f"*{ENDING}")) if path.is_file()}
