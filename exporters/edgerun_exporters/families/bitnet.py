"""BitNet b1.58 (arXiv 2402.17764): a Llama with ternary weights, a squared ReLU and norms before o and down."""

from __future__ import annotations

from .family import Family

FAMILY = Family(
    name="bitnet",
    title="BitNet",
    # "bitnet" is the first generation (1bitLLM), whose MLP has SiLU.
    gguf={"bitnet": "SwiGLU", "bitnet-b1.58": "SquaredReLU", "bitnet-25": "SquaredReLU"},
    huggingface=frozenset({"bitnet"}),
    ternary=True,
    defaults={"hidden_act": "relu2", "rope_theta": 500_000.0, "rms_norm_eps": 1e-5},
)
