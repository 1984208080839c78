"""Llama in all its forms (Llama 2, 3, 3.2, SmolLM2, TinyLlama, Mistral) and BitNet, which differs in norms, activation
and weights, from GGUF and from Hugging Face folders."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint, TensorInfo
from ..ternary import TRITS_PER_BYTE, MasterWeights, PackedTrits, Ternary, TernaryValues
from . import rope
from .description import Description, Layer, Matrix, half_rotation_order

ARCHITECTURES: dict[str, frozenset[str]] = {
    "gguf": frozenset({"llama", "bitnet", "bitnet-b1.58", "bitnet-25"}),
    "safetensors": frozenset({"llama", "mistral", "bitnet"}),
}
_ACTIVATIONS = {"silu": "SwiGLU", "swish": "SwiGLU", "relu2": "SquaredReLU"}
_GGUF_ACTIVATIONS = {"bitnet-b1.58": "SquaredReLU", "bitnet-25": "SquaredReLU"}
"""GGUF says it by the architecture alone; "bitnet" is the first generation (1bitLLM), whose MLP has SiLU."""
_BITNET_DEFAULTS = {"hidden_act": "relu2", "rope_theta": 500_000.0, "rms_norm_eps": 1e-5}
"""What transformers' BitNetConfig assumes where a config.json is silent, and Llama's does not."""

_LARGEST = 1 << 24
"""No size of a model is larger: its arrays would not fit in memory before its tensors show that it lies."""
_NOT_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$|^rope_freqs\.weight$|attn_rot_embd|masked_bias$")
"""Buffers that some checkpoints carry: known from the configuration, or read elsewhere."""


@dataclass(frozen=True)
class _Names:
    """Tensor names of one file format; `{i}` stands for the layer."""

    embedding: str
    output: str
    final_norm: str
    input_norm: str
    post_attention_norm: str
    matrices: dict[str, str]  # without ".weight" and ".bias"
    own_norms: dict[str, tuple[str, ...]]  # of a matrix's input, by whatever name


_GGUF = _Names(
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "blk.{i}.attn_norm.weight",
    "blk.{i}.ffn_norm.weight",
    {
        "q_proj": "blk.{i}.attn_q",
        "k_proj": "blk.{i}.attn_k",
        "v_proj": "blk.{i}.attn_v",
        "o_proj": "blk.{i}.attn_output",
        "gate_proj": "blk.{i}.ffn_gate",
        "up_proj": "blk.{i}.ffn_up",
        "down_proj": "blk.{i}.ffn_down",
    },
    {"o_proj": ("blk.{i}.attn_sub_norm.weight",), "down_proj": ("blk.{i}.ffn_sub_norm.weight",)},
)
_HUGGINGFACE = _Names(
    "model.embed_tokens.weight",
    "lm_head.weight",
    "model.norm.weight",
    "model.layers.{i}.input_layernorm.weight",
    "model.layers.{i}.post_attention_layernorm.weight",
    {
        **{name: f"model.layers.{{i}}.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj", "o_proj")},
        **{name: f"model.layers.{{i}}.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")},
    },
    {
        "o_proj": (
            "model.layers.{i}.self_attn.attn_sub_norm.weight",
            "model.layers.{i}.self_attn.inner_attn_ln.weight",
        ),
        "down_proj": ("model.layers.{i}.mlp.ffn_sub_norm.weight", "model.layers.{i}.mlp.ffn_layernorm.weight"),
    },
)


@dataclass(frozen=True)
class _Sizes:
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


def describe(checkpoint: Checkpoint) -> Description:
    """Finds every tensor of a Llama checkpoint. CheckpointError names the field or tensor that is missing or odd."""
    gguf = checkpoint.format == "gguf"
    names, sizes = (_GGUF, _gguf_sizes(checkpoint)) if gguf else (_HUGGINGFACE, _huggingface_sizes(checkpoint))
    _check(sizes, checkpoint)
    hidden, vocab = sizes.hidden_size, sizes.vocab_size
    final_norm = checkpoint.vector(names.final_norm, hidden)
    description = Description(
        family="bitnet" if checkpoint.architecture.startswith("bitnet") else "llama",
        name=sizes.name,
        hidden_size=hidden,
        intermediate_size=sizes.intermediate_size,
        n_heads=sizes.n_heads,
        n_kv_heads=sizes.n_kv_heads,
        head_dim=sizes.head_dim,
        vocab_size=vocab,
        context_length=sizes.context_length,
        rope_theta=sizes.rope_theta,
        rms_norm_eps=sizes.rms_norm_eps,
        attention_scale=sizes.attention_scale,
        inv_freq=sizes.inv_freq,
        embedding=Matrix("embedding.weight", checkpoint.info(names.embedding, (vocab, hidden)), vocab, hidden),
        output=None
        if sizes.tied
        else Matrix("output.weight", checkpoint.info(names.output, (vocab, hidden)), vocab, hidden),
        final_norm=final_norm,
        layers=[_layer(checkpoint, sizes, names, i) for i in range(sizes.n_layers)],
        activation=sizes.activation,
        notes=sizes.notes,
    )
    _refuse_extra(checkpoint, description, names)
    return description


def _refuse_extra(checkpoint: Checkpoint, description: Description, names: _Names) -> None:
    """A weight that we would leave out (a norm on q and k, say) means that this is not the model it claims to be."""
    known = {names.output, names.final_norm} | {matrix.source.name for matrix in description.matrices()}
    for i, layer in enumerate(description.layers):
        known |= {names.input_norm.format(i=i), names.post_attention_norm.format(i=i)}
        for role, template in names.matrices.items():
            stored = template.format(i=i)
            known.add(stored + ".bias")
            if layer.matrices[role].ternary is not None:
                known |= {stored + ".scale", stored + ".weight_scale"}
            if role in layer.norms:
                known |= set(_own_norms(names, role, i))
    for name in checkpoint.tensors:
        if name not in known and not _NOT_WEIGHTS.search(name):
            raise CheckpointError(
                f"{checkpoint.path}: tensor {name} has no place in a Llama of {len(description.layers)} layers: "
                "the model is of another kind, or its configuration is; use a plain Llama model"
            )


def _layer(checkpoint: Checkpoint, sizes: _Sizes, names: _Names, i: int) -> Layer:
    hidden, attention = sizes.hidden_size, sizes.n_heads * sizes.head_dim
    kv = sizes.n_kv_heads * sizes.head_dim
    shapes = {
        "q_proj": (attention, hidden),
        "k_proj": (kv, hidden),
        "v_proj": (kv, hidden),
        "o_proj": (hidden, attention),
        "gate_proj": (sizes.intermediate_size, hidden),
        "up_proj": (sizes.intermediate_size, hidden),
        "down_proj": (hidden, sizes.intermediate_size),
    }
    interleaved = {"q_proj": sizes.n_heads, "k_proj": sizes.n_kv_heads}
    if checkpoint.format != "gguf" or checkpoint.architecture != "llama":
        interleaved = {}
    matrices, biases, norms = {}, {}, {}
    for role, (rows, columns) in shapes.items():
        part = "mlp" if role in ("gate_proj", "up_proj", "down_proj") else "attention"
        stored = names.matrices[role].format(i=i)
        info, ternary = _weight(checkpoint, stored, rows, columns)
        heads = interleaved.get(role, 0)
        matrices[role] = Matrix(f"layers.{i}.{part}.{role}.weight", info, rows, columns, heads, ternary)
        if stored + ".bias" in checkpoint.tensors:
            bias = checkpoint.vector(stored + ".bias", rows)
            biases[role] = bias[half_rotation_order(rows, heads)] if heads else bias
        found = [name for name in _own_norms(names, role, i) if name in checkpoint.tensors]
        if len(found) > 1:
            raise CheckpointError(f"{checkpoint.path}: {' and '.join(found)}: two norms of one input are not supported")
        if not found and checkpoint.architecture.startswith("bitnet"):
            found = list(names.own_norms.get(role, ())[:1])
        if found:
            norms[role] = checkpoint.vector(found[0], columns)
    return Layer(
        checkpoint.vector(names.input_norm.format(i=i), hidden),
        checkpoint.vector(names.post_attention_norm.format(i=i), hidden),
        matrices,
        biases,
        norms,
    )


def _own_norms(names: _Names, role: str, i: int) -> list[str]:
    """The names that a norm of this matrix's own input may have; the last is that inside transformers' BitLinear."""
    templates = (*names.own_norms.get(role, ()), names.matrices[role] + ".rms_norm.weight")
    return [template.format(i=i) for template in templates]


def _weight(checkpoint: Checkpoint, stored: str, rows: int, columns: int) -> tuple[TensorInfo, Ternary | None]:
    """The tensor of a linear layer, and where its trits come from if the model has ternary weights there."""
    name = stored + ".weight"
    if checkpoint.format == "gguf":
        info = checkpoint.info(name, (rows, columns))
        scale = stored + ".scale" if stored + ".scale" in checkpoint.tensors else None
        values = TernaryValues(info, scale)
        if checkpoint.architecture != "llama" or info.format == "I2_S":
            return info, values
        # A file of a plain Llama may have been squeezed into these formats, whose scales then differ.
        return info, values if info.format in ("TQ1_0", "TQ2_0") and values.is_ternary(checkpoint) else None
    config = checkpoint.metadata
    quantised = config.get("quantization_config") or {}
    if not quantised and config.get("weight_bits") != 1:
        return checkpoint.info(name, (rows, columns)), None
    kept = quantised.get("modules_to_not_convert") or ()
    if any(stored == module or stored.endswith(f".{module}") or f"{module}." in stored for module in kept):
        return checkpoint.info(name, (rows, columns)), None
    found = checkpoint.tensors.get(name)
    if found is not None and found.format == "U8":
        if rows % TRITS_PER_BYTE:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {name} packs {TRITS_PER_BYTE} rows in one, but has {rows}: "
                "the checkpoint contradicts itself; download it again"
            )
        info = checkpoint.info(name, (rows // TRITS_PER_BYTE, columns))
        inverse = quantised.get("linear_class", "bitlinear") == "bitlinear"
        return info, PackedTrits(info, stored + ".weight_scale", inverse)
    info = checkpoint.info(name, (rows, columns))
    if quantised.get("quantization_mode", "offline") == "online" or not quantised:
        return info, MasterWeights(info)
    return info, TernaryValues(info, stored + ".weight_scale")


def _gguf_sizes(checkpoint: Checkpoint) -> _Sizes:
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
    embedding = checkpoint.tensors.get(_GGUF.embedding)
    vocab = embedding.shape[0] if embedding and len(embedding.shape) == 2 else 1
    return _Sizes(
        name=str(values.get("general.name") or checkpoint.path.stem),
        n_layers=_integer(values, prefix + "block_count", where),
        hidden_size=hidden,
        intermediate_size=_integer(values, prefix + "feed_forward_length", where),
        n_heads=n_heads,
        n_kv_heads=_integer(values, prefix + "attention.head_count_kv", where, n_heads),
        head_dim=head_dim,
        vocab_size=vocab,
        context_length=_integer(values, prefix + "context_length", where),
        rope_theta=theta,
        inv_freq=inv_freq,
        rms_norm_eps=checkpoint.number(prefix + "attention.layer_norm_rms_epsilon", 1e-5),
        attention_scale=checkpoint.number(prefix + "attention.scale", 0.0) or 1 / math.sqrt(head_dim),
        activation=_GGUF_ACTIVATIONS.get(checkpoint.architecture, "SwiGLU"),
        tied=_GGUF.output not in checkpoint.tensors,
        notes=[],
    )


def _huggingface_sizes(checkpoint: Checkpoint) -> _Sizes:
    defaults = _BITNET_DEFAULTS if checkpoint.architecture == "bitnet" else {}
    config = {**defaults, **{key: value for key, value in checkpoint.metadata.items() if value is not None}}
    folder = checkpoint.path if checkpoint.path.is_dir() else checkpoint.path.parent
    where = str(folder / "config.json")
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
    context = _integer(config, "max_position_embeddings", where, 2048)
    notes = []
    window = config.get("sliding_window")
    if checkpoint.architecture == "mistral" and isinstance(window, int) and 0 < window < context:
        notes.append(f"context length {window} instead of {context}: beyond its sliding window the model is not exact")
        context = window
    return _Sizes(
        name=folder.resolve().name,
        n_layers=_integer(config, "num_hidden_layers", where),
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


def _check(sizes: _Sizes, checkpoint: Checkpoint) -> None:
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
        raise CheckpointError(f"{where}: {key} is {value!r}, not a sensible size: not a whole Llama configuration")
    return value
