"""Model families. A family is a description: which configuration fields and tensors a checkpoint of it has."""

from __future__ import annotations

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint
from . import llama
from .description import Description, Matrix

__all__ = ["Description", "Matrix", "describe"]


def describe(checkpoint: Checkpoint) -> Description:
    """The model in `checkpoint`, every tensor found and of the right shape. CheckpointError if no family fits."""
    if checkpoint.architecture in llama.ARCHITECTURES[checkpoint.format]:
        return llama.describe(checkpoint)
    known = ", ".join(sorted({name for names in llama.ARCHITECTURES.values() for name in names}))
    raise CheckpointError(
        f"{checkpoint.path}: architecture {checkpoint.architecture!r} is not supported (supported: {known}); "
        "use a model of one of these"
    )
