"""Qwen3 (arXiv 2505.09388): a Llama with an RMSNorm on every head of q and k."""

from __future__ import annotations

from . import qwen2
from .family import Family

FAMILY = Family(
    name="qwen3",
    title="Qwen3",
    gguf={"qwen3": "SwiGLU"},
    huggingface=frozenset({"qwen3"}),
    biases=frozenset(),
    head_norms=True,
    defaults={"head_dim": 128, "max_position_embeddings": 32768},
    required={"attention_bias": False},
    window=qwen2.window,
)
