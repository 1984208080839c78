"""edgerun: language models from ONNX packages, run by kernels compiled ahead of time.

>>> import edgerun
>>> with edgerun.load("smollm2") as model:
...     for piece in model.chat([{"role": "user", "content": "What is the capital of France?"}]):
...         print(piece.text, end="", flush=True)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgerun.errors import (
    CacheFullError,
    CheckpointError,
    ContextError,
    EdgerunError,
    HubError,
    OptionError,
    PackageError,
    VariantError,
)

if TYPE_CHECKING:
    from edgerun.generation.generation import Generation, Piece, Timings
    from edgerun.generation.options import SamplingOptions
    from edgerun.model import Model, load
    from edgerun.session import Session

__version__ = "0.1.0"

__all__ = [
    "CacheFullError",
    "CheckpointError",
    "ContextError",
    "EdgerunError",
    "Generation",
    "HubError",
    "Model",
    "OptionError",
    "PackageError",
    "Piece",
    "SamplingOptions",
    "Session",
    "Timings",
    "VariantError",
    "__version__",
    "load",
]

_HOME = {
    "Generation": "edgerun.generation.generation",
    "Model": "edgerun.model",
    "Piece": "edgerun.generation.generation",
    "SamplingOptions": "edgerun.generation.options",
    "Session": "edgerun.session",
    "Timings": "edgerun.generation.generation",
    "load": "edgerun.model",
}


def __getattr__(name: str) -> Any:
    """Imports the runtime when it is first used, so that ``import edgerun`` costs next to nothing."""
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgerun' has no attribute {name!r}")
