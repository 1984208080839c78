"""Qwen2 and Qwen2.5 (arXiv 2407.10671, 2412.15115): a Llama with biases on q, k and v."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint
from .family import Family


def window(checkpoint: Checkpoint, config: Mapping[str, Any], n_layers: int) -> int | None:
    """The sliding window of the layers that have one: those from `max_window_layers` on, or those that `layer_types`
    names, where `use_sliding_window` is set; GGUF's key has no such switch. Other types of layers: CheckpointError."""
    if checkpoint.format == "gguf":
        size = config.get(f"{checkpoint.architecture}.attention.sliding_window")
        return size if isinstance(size, int) else None
    kinds = config.get("layer_types")
    if kinds is None:
        first = config.get("max_window_layers", 28)
        sliding = isinstance(first, int) and first < n_layers
    else:
        known = ("full_attention", "sliding_attention")
        if not isinstance(kinds, list) or any(kind not in known for kind in kinds):
            raise CheckpointError(
                f"{checkpoint.path}: layer_types is {str(kinds)[:80]!r}: only {' and '.join(known)} are supported"
            )
        sliding = "sliding_attention" in kinds
    size = config.get("sliding_window", 4096)
    return size if sliding and config.get("use_sliding_window") and isinstance(size, int) else None


FAMILY = Family(
    name="qwen2",
    title="Qwen2",
    gguf={"qwen2": "SwiGLU"},
    huggingface=frozenset({"qwen2"}),
    biases=frozenset({"q_proj", "k_proj", "v_proj"}),
    defaults={"max_position_embeddings": 32768},
    required={"use_mrope": False},
    window=window,
)
