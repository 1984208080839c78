"""Which reader a checkpoint is for."""

from __future__ import annotations

import os
from pathlib import Path

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Opens a GGUF file, a .safetensors file or a Hugging Face folder. CheckpointError if it is none of them."""
    place = Path(path)
    if place.is_dir():
        # Imported where it is needed: each brings the library of its format.
        from .safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(place)
    if not place.exists():
        raise CheckpointError(f"{place}: no such file or folder; give a GGUF file or a Hugging Face folder")
    try:
        with place.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{place}: cannot be read ({error.strerror}); check its permissions") from None
    if magic == b"GGUF":
        from .gguf import GgufCheckpoint

        return GgufCheckpoint(place)
    if place.suffix == ".safetensors":
        from .safetensors import SafetensorsCheckpoint

        return SafetensorsCheckpoint(place)
    raise CheckpointError(f"{place}: not a checkpoint: neither a GGUF file nor safetensors; check the path")
