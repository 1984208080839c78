"""DeltaLLM: temporal sparsity in attention (Qi et al., arXiv 2507.19608), for prefill and decode.

Keys of adjacent tokens are alike. A head keeps a *reference* key k̂, the last that was transmitted; a token whose key is
nearer to it than Θ is scored with k̂ instead of its own. The last ``window`` tokens and the first ``sinks`` are exact.

Two forms:

``key``      decides for a whole key: Δ = k - k̂ counts as zero when ‖Δ‖ < Θ ‖k̂‖. Tokens that share a reference are a
             *run*: one key, their number n and the mean of their values stand for them, because they all get the same
             score s and so n exp(s) times that mean in the output. It saves the bytes of keys *and* values.
``element``  decides for every element, as the paper: |Δ_i| < Θ σ_i, σ_i the spread of the head's i-th feature. A token
             keeps a key of its own, made of old and new elements. It saves nothing on a CPU; it is here for the paper's
             figures.

Keys are compared after RoPE. Tokens become runs when they leave the window, ``STEP`` of them at a time, so that what a
token sees depends on its position alone: the exact part is ``window`` (in whole steps) to STEP - 1 more tokens long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import CHUNK

STEP = CHUNK
"""Tokens that leave the window together."""
Form = Literal["key", "element"]
F32 = NDArray[np.float32]


@dataclass(frozen=True)
class DeltaLLM:
    """theta: float32 [n_layers, n_kv_heads], Θ of every head, at least 0; 0 keeps a head exact.  spread: float32
    [n_layers, n_kv_heads, head_dim], σ, of the form "element" alone."""

    theta: F32
    window: int = 128
    sinks: int = 4
    form: Form = "key"
    spread: F32 | None = None

    def exact_from(self, position: int) -> int:
        """Where the exact part of what ``position`` sees begins, beside the sinks; a multiple of STEP."""
        return max(0, position // STEP - -(-self.window // STEP)) * STEP


def references(keys: F32, theta: F32, sinks: int) -> NDArray[np.bool_]:
    """The form "key": which tokens transmit their key, bool [..., T], for keys [..., T, D] and theta [...]."""
    keys = np.asarray(keys, np.float32)
    sent = np.ones(keys.shape[:-1], bool)
    reference = keys[..., 0, :].copy()
    limit = np.square(theta, dtype=np.float32)
    for t in range(1, keys.shape[-2]):
        key = keys[..., t, :]
        moved = np.square(key - reference).sum(-1) >= limit * np.square(reference).sum(-1)
        sent[..., t] = moved | (t <= sinks)
        reference = np.where(sent[..., t, None], key, reference)
    return sent


def delta_keys(keys: F32, theta: F32, spread: F32, sinks: int) -> tuple[F32, NDArray[np.bool_]]:
    """The form "element": the keys that tokens are scored with, float32 [..., T, D], and which of their elements were
    transmitted, bool [..., T, D]; keys [..., T, D], theta [...], spread [..., D]."""
    keys = np.asarray(keys, np.float32)
    sent = np.ones(keys.shape, bool)
    scored = keys.copy()
    limit = np.asarray(theta, np.float32)[..., None] * spread
    for t in range(1, keys.shape[-2]):
        if t > sinks:
            sent[..., t, :] = np.abs(keys[..., t, :] - scored[..., t - 1, :]) >= limit
        scored[..., t, :] = np.where(sent[..., t, :], keys[..., t, :], scored[..., t - 1, :])
    return scored, sent
