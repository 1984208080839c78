"""From a package's ONNX graph to a tape: op records with addresses and sizes, buffers planned once."""

from __future__ import annotations

from edgerun.lowering.lower import lower
from edgerun.lowering.tape import Tape

__all__ = ["Tape", "lower"]
