"""What sets one family of models apart from the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..checkpoint import Checkpoint

Window = Callable[[Checkpoint, Mapping[str, Any], int], "int | None"]


@dataclass(frozen=True)
class Family:
    """The options of a decoder-only transformer (see `decoder`), and the names by which its checkpoints go."""

    name: str
    """What edgerun.json calls it."""
    title: str
    """What messages call it."""
    gguf: Mapping[str, str]
    """GGUF architectures, and the operator that joins gate and up in each: GGUF says it by the architecture alone."""
    huggingface: frozenset[str]
    """The `model_type`s of a config.json."""
    biases: frozenset[str] | None = None
    """The linear layers that have a bias, all of them and no others; None: those that the checkpoint has one for."""
    head_norms: bool = False
    """Whether every head of q and k passes an RMSNorm before RoPE."""
    interleaved: bool = False
    """Whether GGUF stores the rows of q and k for RoPE on neighbouring pairs."""
    ternary: bool = False
    """Whether linear layers are ternary, and have norms of their own, whatever a checkpoint says of it."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers' configuration class assumes where a config.json is silent, and Llama's does not."""
    required: Mapping[str, Any] = field(default_factory=dict)
    """Fields of a config.json that can have this value only, where there are any."""
    window: Window = lambda checkpoint, config, n_layers: None
    """window(checkpoint, configuration, number of layers): positions that some layer sees at most; None: all."""
