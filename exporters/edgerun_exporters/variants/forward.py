"""A plain numpy forward pass of several models of one shape at once, a layer's weights in memory at a time.

It is how activations are recorded and values of q compared before there is a variant: in float32, on the original
weights. `C` models run side by side over the same B texts of T tokens; who calls says how each multiplies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..families import Description, Matrix

Float = npt.NDArray[np.float32]


class Models(Protocol):
    """What the models multiply with and add."""

    def embed(self, matrix: Matrix, tokens: npt.NDArray[np.int64]) -> Float:
        """Rows of the embedding for tokens [B, T]: float32 [C, B, T, K]."""

    def linear(self, matrix: Matrix, x: Float) -> Float:
        """x [C, M, K] times the matrix transposed: [C, M, N]."""

    def vector(self, name: str, base: Float) -> Float:
        """A norm's weight or a bias of every model: [C, 1, K]."""


def forward(
    description: Description,
    models: Models,
    tokens: npt.NDArray[np.int64],
    at: npt.NDArray[np.int64],
    step: Callable[[int, int], None] = lambda done, total: None,
) -> Float:
    """What goes into the output head, float32 [C, len(at), K], at the places `at` of the flattened tokens [B, T]; what
    lies behind a text's end (padding) is seen by nobody before it. step(layers done, layers in all)."""
    d = description
    cos, sin = _rotary(d.inv_freq, tokens.shape[1])
    x = models.embed(d.embedding, tokens)
    c, b, t, hidden = x.shape
    x = x.reshape(c, b * t, hidden)
    group = d.n_heads // d.n_kv_heads
    mask = np.triu(np.full((t, t), -np.inf, np.float32), 1)
    for i, layer in enumerate(d.layers):
        name = f"layers.{i}"

        def project(x: Float, role: str, layer=layer) -> Float:  # type: ignore[no-untyped-def]
            matrix = layer.matrices[role]
            stem = matrix.name.removesuffix(".weight")
            if role in layer.norms:
                x = _norm(x, models.vector(f"{stem}.norm.weight", layer.norms[role]), d.rms_norm_eps)
            y = models.linear(matrix, x)
            return y + models.vector(f"{stem}.bias", layer.biases[role]) if role in layer.biases else y

        h = _norm(x, models.vector(f"{name}.input_norm.weight", layer.input_norm), d.rms_norm_eps)
        q, k, v = (
            project(h, role).reshape(c, b, t, heads, d.head_dim).swapaxes(2, 3)
            for role, heads in (("q_proj", d.n_heads), ("k_proj", d.n_kv_heads), ("v_proj", d.n_kv_heads))
        )
        if layer.head_norms:
            q_norm, k_norm = (
                models.vector(f"{name}.attention.{role}.weight", layer.head_norms[role])[:, :, None, None]
                for role in ("q_norm", "k_norm")
            )
            q, k = _norm(q, q_norm, d.rms_norm_eps), _norm(k, k_norm, d.rms_norm_eps)
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
        q = q.reshape(c, b, d.n_kv_heads, group, t, d.head_dim)
        scores = q @ k[:, :, :, None].swapaxes(-1, -2) * np.float32(d.attention_scale) + mask
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        a = (scores @ v[:, :, :, None]).reshape(c, b, d.n_heads, t, d.head_dim).swapaxes(2, 3).reshape(c, b * t, -1)
        x = x + project(a, "o_proj")
        h = _norm(x, models.vector(f"{name}.post_attention_norm.weight", layer.post_attention_norm), d.rms_norm_eps)
        gate, up = project(h, "gate_proj"), project(h, "up_proj")
        gated = np.maximum(gate, 0) ** 2 if d.activation == "SquaredReLU" else gate * _sigmoid(gate)
        x = x + project(gated * up, "down_proj")
        step(i + 1, len(d.layers))
    h = _norm(x[:, at], models.vector("final_norm.weight", d.final_norm), d.rms_norm_eps)
    return h


def _norm(x: Float, weight: Float, epsilon: float) -> Float:
    scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(epsilon))
    normed: Float = x * scale * weight
    return normed


def _sigmoid(x: Float) -> Float:
    return np.asarray(1 / (1 + np.exp(-np.clip(x, -80, 80))), np.float32)


def _rotary(inv_freq: Float, t: int) -> tuple[Float, Float]:
    angles = np.arange(t, dtype=np.float32)[:, None] * inv_freq
    return np.cos(angles), np.sin(angles)


def _rotate(x: Float, cos: Float, sin: Float) -> Float:
    """RoPE on the two halves of a head: x [..., T, D]."""
    low, high = np.split(x, 2, axis=-1)
    return np.concatenate([low * cos - high * sin, high * cos + low * sin], axis=-1)
