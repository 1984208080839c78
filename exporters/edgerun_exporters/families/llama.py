"""Llama in all its forms: Llama 2, 3, 3.2, SmolLM2, TinyLlama, Mistral."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..checkpoint import Checkpoint
from .family import Family


def _window(checkpoint: Checkpoint, config: Mapping[str, Any], n_layers: int) -> int | None:
    """Of Mistral: every layer sees as many positions at most."""
    window = config.get("sliding_window")
    return window if checkpoint.architecture == "mistral" and isinstance(window, int) else None


FAMILY = Family(
    name="llama",
    title="Llama",
    gguf={"llama": "SwiGLU"},
    huggingface=frozenset({"llama", "mistral"}),
    interleaved=True,
    window=_window,
)
