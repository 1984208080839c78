"""Making variants: the delta between two checkpoints, made sparse and written as a small file."""

from __future__ import annotations

from .create import METHODS, CreateReport, create

__all__ = ["METHODS", "CreateReport", "create"]
