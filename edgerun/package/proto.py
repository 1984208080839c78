"""ONNX's message classes without the rest of the onnx package, for reading a graph at start-up.

`import onnx` costs about 0.1 s on a fast machine (its C++ extension, helpers, compose, version lookup); the generated
messages alone cost a sixth of that. Protobuf keeps one class per message, so these are the very classes of `onnx`.
"""

from __future__ import annotations

import importlib.util
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

from edgerun.errors import PackageError


@lru_cache(maxsize=1)
def messages() -> Any:
    """The module that defines ModelProto, GraphProto, TensorProto, ... Raises PackageError if onnx is not installed."""
    if "onnx" in sys.modules:
        return sys.modules["onnx"]
    onnx = importlib.util.find_spec("onnx")
    if onnx is None or onnx.origin is None:
        raise PackageError("the Python package `onnx`, which reads model.onnx, is missing: pip install onnx")
    generated = Path(onnx.origin).with_name("onnx_ml_pb2.py")
    spec = importlib.util.spec_from_file_location("edgerun.package.onnx_ml_pb2", generated)
    if generated.is_file() and spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return importlib.import_module("onnx")
