"""edgerun: language models from ONNX packages, run by kernels compiled ahead of time."""

from __future__ import annotations

from edgerun.errors import (
    CheckpointError,
    ContextError,
    EdgerunError,
    HubError,
    OptionError,
    PackageError,
)

__version__ = "0.1.0"

__all__ = [
    "CheckpointError",
    "ContextError",
    "EdgerunError",
    "HubError",
    "OptionError",
    "PackageError",
    "__version__",
]
