"""From checkpoints (GGUF, Hugging Face safetensors) to edgerun's model packages."""

from __future__ import annotations

from .export import ExportReport, export
from .fingerprint import fingerprint
from .quantize import QUANTS

__all__ = ["QUANTS", "ExportReport", "export", "fingerprint"]
