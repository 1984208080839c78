"""Model families. A family is one file: by which names its checkpoints go, and what sets it apart (see `family`)."""

from __future__ import annotations

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint
from . import bitnet, decoder, llama, qwen2, qwen3
from .description import Description, Matrix
from .family import Family

__all__ = ["FAMILIES", "Description", "Family", "Matrix", "describe"]

FAMILIES: tuple[Family, ...] = (llama.FAMILY, bitnet.FAMILY, qwen2.FAMILY, qwen3.FAMILY)
_BY_ARCHITECTURE = {
    "gguf": {name: family for family in FAMILIES for name in family.gguf},
    "safetensors": {name: family for family in FAMILIES for name in family.huggingface},
}


def describe(checkpoint: Checkpoint) -> Description:
    """The model in `checkpoint`, every tensor found and of the right shape. CheckpointError if no family fits."""
    family = _BY_ARCHITECTURE[checkpoint.format].get(checkpoint.architecture)
    if family is not None:
        return decoder.describe(checkpoint, family)
    known = ", ".join(sorted({name for names in _BY_ARCHITECTURE.values() for name in names}))
    raise CheckpointError(
        f"{checkpoint.path}: architecture {checkpoint.architecture!r} is not supported (supported: {known}); "
        "use a model of one of these"
    )
