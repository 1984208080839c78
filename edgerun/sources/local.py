"""Checkpoints on the user's own disk: what a path holds, and what identifies its content."""

from __future__ import annotations

import hashlib
from pathlib import Path

from edgerun.errors import CheckpointError
from edgerun.progress import Progress, silent
from edgerun.sources.cache import is_package

_PARTS = ("*.safetensors", "*.json", "*.model", "*.jinja", "*.txt")
_CHUNK = 1 << 20

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive (PyTorch's .bin and .pt files are); save the model as safetensors"),
    (b"\x80", "a Python pickle (PyTorch's older files are); save the model as safetensors"),
    (b"<", "a web page or XML; download the file itself"),
    (b"ggjt", "a GGML file from before GGUF; download a GGUF file"),
    (b"{", "a JSON file; give the folder of the checkpoint"),
)


def recognise(path: Path) -> tuple[Path, bool]:
    """The package or checkpoint that a path means, and whether it is a package: a GGUF file, a folder with
    config.json and safetensors, a folder with one GGUF file, or a file inside one of these folders.

    Raises `CheckpointError`, which says what the file looks like instead.
    """
    try:
        return _folder(path) if path.is_dir() else _file(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def stamp(checkpoint: Path) -> str:
    """A cheap key for a checkpoint as it is now: paths, sizes and times of its files."""
    return "|".join(
        f"{part.resolve()}:{status.st_size}:{status.st_mtime_ns}"
        for part in _parts(checkpoint)
        for status in [part.stat()]
    )


def digest(checkpoint: Path, progress: Progress = silent) -> str:
    """sha256, as hex, of a GGUF file, or of the names and contents of a folder's files."""
    parts = _parts(checkpoint)
    total = sum(part.stat().st_size for part in parts)
    whole = hashlib.sha256()
    buffer = bytearray(_CHUNK)
    done = 0
    for part in parts:
        if checkpoint.is_dir():
            whole.update(f"{part.name}\0{part.stat().st_size}\0".encode())
        with part.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                whole.update(memoryview(buffer)[:count])
                done += count
                progress(done, total, f"Reading {checkpoint.name}")
    return whole.hexdigest()


def _parts(checkpoint: Path) -> list[Path]:
    if not checkpoint.is_dir():
        return [checkpoint]
    return sorted({part for pattern in _PARTS for part in checkpoint.glob(pattern) if part.is_file()})


def _folder(path: Path) -> tuple[Path, bool]:
    # Anything that wants to be a package is opened as one: the reader says best what is wrong with it.
    if (path / "edgerun.json").exists() or (path / "model.onnx").exists():
        return path, True
    names = {child.name for child in path.iterdir()}
    if any(name.endswith(".safetensors") for name in names):
        if "config.json" in names:
            return path, False
        if "adapter_config.json" in names:
            raise CheckpointError(f"{path}: a LoRA adapter, not a whole model; merge it into its base model first")
        raise CheckpointError(f"{path}: safetensors without a config.json; download the whole repository")
    models = sorted(name for name in names if name.endswith(".gguf") and not name.startswith("mmproj"))
    if len(models) == 1:
        return path / models[0], False
    if models:
        raise CheckpointError(f"{path}: holds several GGUF files ({', '.join(models)}); give the path of one of them")
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise CheckpointError(f"{path}: PyTorch's pickled weights, which can run code; save the model as safetensors")
    raise CheckpointError(
        f"{path}: neither a model package (model.onnx, edgerun.json) nor a checkpoint (config.json with safetensors, "
        "or a GGUF file); check the path"
    )


def _file(path: Path) -> tuple[Path, bool]:
    with path.open("rb") as file:
        beginning = file.read(64)
    if beginning.startswith(b"GGUF"):
        return path, False
    if is_package(path.parent) and path.name.startswith(("model.onnx", "edgerun.json")):
        return path.parent, True
    if path.suffix == ".safetensors" and beginning[8:9] == b"{":
        if not (path.parent / "config.json").is_file():
            raise CheckpointError(f"{path}: safetensors without a config.json beside it; download the whole repository")
        return path.parent, False
    for prefix, what in _BEGINNINGS:
        if beginning.startswith(prefix):
            raise CheckpointError(f"{path}: not a checkpoint: it looks like {what}")
    what = "an empty file" if not beginning else "something else"
    raise CheckpointError(f"{path}: not a checkpoint: neither GGUF nor safetensors, but {what}; check the path")
