"""A checkpoint's configuration in standard terms, from GGUF's key-values and from a config.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint
from . import rope
from .family import Family
from .names import GGUF

_ACTIVATIONS = {"silu": "SwiGLU", "swish": "SwiGLU", "relu2": "SquaredReLU"}
_LARGEST = 1 << 24
"""No size of a model is larger: its arrays would not fit in memory before its tensors show that it lies."""


@dataclass(frozen=True)
class Sizes:
    """The configuration in standard terms."""

    name: str
    n_layers: int
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rope_theta: float
    inv_freq: npt.NDArray[np.float32]
    rms_norm_eps: float
    attention_scale: float
    activation: str
    tied: bool
    notes: list[str]


def from_gguf(checkpoint: Checkpoint, family: Family) -> Sizes:
    """The sizes in a GGUF file's key-values. CheckpointError names the key that is missing, odd or unsupported."""
    values, where = checkpoint.metadata, str(checkpoint.path)
    prefix = checkpoint.architecture + "."
    if checkpoint.number(prefix + "expert_count", 0):
        raise CheckpointError(f"{where}: {prefix}expert_count is set: mixtures of experts are not supported")
    hidden = _integer(values, prefix + "embedding_length", where)
    n_heads = _integer(values, prefix + "attention.head_count", where)
    head_dim = _integer(values, prefix + "attention.key_length", where, hidden // max(1, n_heads))
    if _integer(values, prefix + "attention.value_length", where, head_dim) != head_dim:
        raise CheckpointError(f"{where}: {prefix}attention.value_length differs from key_length: not supported")
    factors = None
    if "rope_freqs.weight" in checkpoint.tensors:
        factors = checkpoint.vector("rope_freqs.weight", head_dim // 2)
    theta, inv_freq = rope.from_gguf(checkpoint, head_dim, factors)
    embedding = checkpoint.tensors.get(GGUF.embedding)
    vocab = embedding.shape[0] if embedding and len(embedding.shape) == 2 else 1
    n_layers = _integer(values, prefix + "block_count", where)
    context, notes = _context(
        _integer(values, prefix + "context_length", where), family.window(checkpoint, values, n_layers)
    )
    return Sizes(
        name=str(values.get("general.name") or checkpoint.path.stem),
        n_layers=n_layers,
        hidden_size=hidden,
        intermediate_size=_integer(values, prefix + "feed_forward_length", where),
        n_heads=n_heads,
        n_kv_heads=_integer(values, prefix + "attention.head_count_kv", where, n_heads),
        head_dim=head_dim,
        vocab_size=vocab,
        context_length=context,
        rope_theta=theta,
        inv_freq=inv_freq,
        rms_norm_eps=checkpoint.number(prefix + "attention.layer_norm_rms_epsilon", 1e-5),
        attention_scale=checkpoint.number(prefix + "attention.scale", 0.0) or 1 / math.sqrt(head_dim),
        activation=family.gguf[checkpoint.architecture],
        tied=GGUF.output not in checkpoint.tensors,
        notes=notes,
    )


def from_huggingface(checkpoint: Checkpoint, family: Family) -> Sizes:
    """The sizes in a config.json. CheckpointError names the field that is missing, odd or unsupported."""
    config = {**family.defaults, **{key: value for key, value in checkpoint.metadata.items() if value is not None}}
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    where = str(folder / "config.json")
    for key, value in family.required.items():
        if config.get(key, value) != value:
            raise CheckpointError(f"{where}: {key} is {config[key]!r}, which is not supported (only {value!r} is)")
    activation = config.get("hidden_act", "silu")
    if activation not in _ACTIVATIONS:
        raise CheckpointError(f"{where}: hidden_act {activation!r} is not supported (supported: silu, relu2)")
    epsilon = checkpoint.number("rms_norm_eps", config.get("rms_norm_eps", 1e-6))
    quantised = config.get("quantization_config") or {}
    if quantised.get("use_rms_norm") and quantised.get("rms_norm_eps", 1e-6) != epsilon:
        raise CheckpointError(f"{where}: quantization_config.rms_norm_eps differs from rms_norm_eps: not supported")
    hidden = _integer(config, "hidden_size", where)
    n_heads = _integer(config, "num_attention_heads", where)
    head_dim = _integer(config, "head_dim", where, hidden // max(1, n_heads))
    theta, inv_freq = rope.from_huggingface(config, head_dim, where)
    n_layers = _integer(config, "num_hidden_layers", where)
    context, notes = _context(
        _integer(config, "max_position_embeddings", where, 2048), family.window(checkpoint, config, n_layers)
    )
    return Sizes(
        name=folder.resolve().name,
        n_layers=n_layers,
        hidden_size=hidden,
        intermediate_size=_integer(config, "intermediate_size", where),
        n_heads=n_heads,
        # Mistral's configuration class has 8 for its default, Llama's has n_heads; both write the value out.
        n_kv_heads=_integer(config, "num_key_value_heads", where, n_heads),
        head_dim=head_dim,
        vocab_size=_integer(config, "vocab_size", where),
        context_length=context,
        rope_theta=theta,
        inv_freq=inv_freq,
        rms_norm_eps=epsilon,
        attention_scale=1 / math.sqrt(head_dim),
        activation=_ACTIVATIONS[activation],
        tied=bool(config.get("tie_word_embeddings", False)),
        notes=notes,
    )


def _context(length: int, window: int | None) -> tuple[int, list[str]]:
    """How many positions the model is exact for, and a note for the user where that is not all of them."""
    if window is None or not 0 < window < length:
        return length, []
    return window, [f"context length {window} instead of {length}: beyond its sliding window the model is not exact"]


def check(sizes: Sizes, checkpoint: Checkpoint) -> None:
    """CheckpointError where sizes do not fit each other."""
    if sizes.n_heads % sizes.n_kv_heads:
        raise CheckpointError(
            f"{checkpoint.path}: {sizes.n_heads} attention heads are no multiple of {sizes.n_kv_heads} key-value heads"
        )
    if sizes.head_dim % 2:
        raise CheckpointError(
            f"{checkpoint.path}: head_dim {sizes.head_dim} is odd: rotary embeddings need an even one"
        )


def _integer(values: Mapping[str, Any], key: str, where: str, default: int | None = None) -> int:
    value = values.get(key)
    if value is None:
        value = default
    if isinstance(value, (list, np.ndarray)):
        raise CheckpointError(f"{where}: {key} differs from layer to layer, which is not supported")
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= _LARGEST:
        raise CheckpointError(f"{where}: {key} is {value!r}, not a sensible size: not a whole configuration")
    return value
