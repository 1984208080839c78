"""The original weights of a model: the checkpoint that it comes from, or what its package dequantises to."""

from __future__ import annotations

import dataclasses
import os

from edgerun.progress import Progress
from edgerun.sources import hub
from edgerun.sources.cache import is_package

from .checkpoint import Checkpoint
from .families import Description, describe
from .readers.open import open_checkpoint
from .readers.package import PackageCheckpoint


def open_original(model: str | os.PathLike[str], progress: Progress | None = None) -> Checkpoint:
    """Opens `model`, named as for `edgerun.load`. Where it exists only quantised, its dequantised values count as the
    original ones. Raises HubError, CheckpointError or PackageError."""
    path = hub.original(model, progress=progress)
    return PackageCheckpoint(path) if is_package(path) else open_checkpoint(path)


def describe_original(checkpoint: Checkpoint) -> Description:
    """`describe`, also for a package, which knows its RoPE frequencies but not what scaling they come from."""
    description = describe(checkpoint)
    if isinstance(checkpoint, PackageCheckpoint):
        return dataclasses.replace(description, inv_freq=checkpoint.inv_freq)
    return description
