"""What all families share: a decoder-only transformer, its tensors found by their names and checked by their shapes."""

from __future__ import annotations

import re

import numpy as np
import numpy.typing as npt

from edgerun.errors import CheckpointError

from ..checkpoint import Checkpoint
from . import sizes as configuration
from .description import Description, Layer, Matrix, half_rotation_order
from .family import Family
from .linear import find_weight
from .names import GGUF, HUGGINGFACE, Names, own_norms
from .sizes import Sizes

_NOT_WEIGHTS = re.compile(r"rotary_emb\.inv_freq$|^rope_freqs\.weight$|attn_rot_embd|masked_bias$")
"""Buffers that some checkpoints carry: known from the configuration, or read elsewhere."""
_MLP = ("gate_proj", "up_proj", "down_proj")


def describe(checkpoint: Checkpoint, family: Family) -> Description:
    """Finds every tensor of a checkpoint of `family`. CheckpointError names the field or tensor that is missing, odd,
    or that the family has no place for."""
    gguf = checkpoint.format == "gguf"
    names = GGUF if gguf else HUGGINGFACE
    sizes = (configuration.from_gguf if gguf else configuration.from_huggingface)(checkpoint, family)
    configuration.check(sizes, checkpoint)
    hidden, vocab = sizes.hidden_size, sizes.vocab_size
    final_norm = checkpoint.vector(names.final_norm, hidden)
    description = Description(
        family=family.name,
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
        layers=[_layer(checkpoint, family, sizes, names, i) for i in range(sizes.n_layers)],
        activation=sizes.activation,
        notes=sizes.notes,
    )
    _refuse_extra(checkpoint, family, description, names)
    return description


def _layer(checkpoint: Checkpoint, family: Family, sizes: Sizes, names: Names, i: int) -> Layer:
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
    if checkpoint.format != "gguf" or not family.interleaved:
        interleaved = {}
    matrices, biases, norms = {}, {}, {}
    for role, (rows, columns) in shapes.items():
        part = "mlp" if role in _MLP else "attention"
        stored = names.matrices[role].format(i=i)
        info, ternary = find_weight(checkpoint, family, stored, rows, columns)
        heads = interleaved.get(role, 0)
        matrices[role] = Matrix(f"layers.{i}.{part}.{role}.weight", info, rows, columns, heads, ternary)
        if _has_bias(checkpoint, family, role, stored):
            bias = checkpoint.vector(stored + ".bias", rows)
            biases[role] = bias[half_rotation_order(rows, heads)] if heads else bias
        norm = _own_norm(checkpoint, family, names, role, i)
        if norm is not None:
            norms[role] = checkpoint.vector(norm, columns)
    return Layer(
        checkpoint.vector(names.input_norm.format(i=i), hidden),
        checkpoint.vector(names.post_attention_norm.format(i=i), hidden),
        matrices,
        biases,
        norms,
        _head_norms(checkpoint, family, sizes, names, i),
    )


def _has_bias(checkpoint: Checkpoint, family: Family, role: str, stored: str) -> bool:
    return stored + ".bias" in checkpoint.tensors if family.biases is None else role in family.biases


def _own_norm(checkpoint: Checkpoint, family: Family, names: Names, role: str, i: int) -> str | None:
    """The name of the norm of this matrix's own input, if it has one."""
    found = [name for name in own_norms(names, role, i) if name in checkpoint.tensors]
    if len(found) > 1:
        raise CheckpointError(f"{checkpoint.path}: {' and '.join(found)}: two norms of one input are not supported")
    if not found and family.ternary and role in names.own_norms:
        return own_norms(names, role, i)[0]
    return found[0] if found else None


def _head_norms(
    checkpoint: Checkpoint, family: Family, sizes: Sizes, names: Names, i: int
) -> dict[str, npt.NDArray[np.float32]]:
    if not family.head_norms:
        return {}
    return {
        role: checkpoint.vector(template.format(i=i), sizes.head_dim) for role, template in names.head_norms.items()
    }


def _refuse_extra(checkpoint: Checkpoint, family: Family, description: Description, names: Names) -> None:
    """A weight that we would leave out (a norm on q and k, say) means that this is not the model it claims to be."""
    known = {names.output, names.final_norm} | {matrix.source.name for matrix in description.matrices()}
    for i, layer in enumerate(description.layers):
        known |= {names.input_norm.format(i=i), names.post_attention_norm.format(i=i)}
        known |= {names.head_norms[role].format(i=i) for role in layer.head_norms}
        for role, template in names.matrices.items():
            stored = template.format(i=i)
            if role in layer.biases:
                known.add(stored + ".bias")
            if layer.matrices[role].ternary is not None:
                known |= {stored + ".scale", stored + ".weight_scale"}
            if role in layer.norms:
                known |= set(own_norms(names, role, i))
    for name in checkpoint.tensors:
        if name not in known and not _NOT_WEIGHTS.search(name):
            raise CheckpointError(
                f"{checkpoint.path}: tensor {name} has no place in a {family.title} of {len(description.layers)} "
                f"layers: the model is of another kind, or its configuration is; use a plain {family.title} model"
            )
