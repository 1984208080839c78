"""Every kernel in plain numpy: the specification that the compiled ones are tested against.

Weights come as they are stored (see ``linear.py``); everything else in its natural shape, without padding. Where a
kernel's result is decided bit by bit (integers, one float32 operation per value) so is its twin's; where it sums
float32 numbers, the twin sums in float64 and rounds once.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .record import GROUP, PAGE, ROWS, SECOND_TERM, activation_bytes

Array = NDArray[Any]
F32 = NDArray[np.float32]
EXP_RANGE = (-87.0, 88.0)
"""The kernels' exp clamps its argument to this."""


def _rounded(x: Any) -> F32:
    return np.asarray(x, np.float32)


# --- weights ----------------------------------------------------------------------------------------------------------


def nibbles(q: Array) -> NDArray[np.int64]:
    """q4 bytes uint8 [Nb, G, 4, 16, 4] -> 0..15, int64 [16 Nb, 32 G]."""
    rows = np.stack((q & 15, q >> 4), axis=-1)  # [b, g, c, r, j, half]: column g*32 + c*8 + half*4 + j
    return rows.transpose(0, 3, 1, 2, 5, 4).reshape(len(q) * ROWS, -1).astype(np.int64)


def int8_rows(q: Array) -> NDArray[np.int64]:
    """q8 values int8 [Nb, G, 8, 16, 4] -> int64 [16 Nb, 32 G]."""
    return q.transpose(0, 3, 1, 2, 4).reshape(len(q) * ROWS, -1).astype(np.int64)


def float_rows(w: F32) -> F32:
    """float32 [Nb, K, 16] -> [16 Nb, K]."""
    return w.transpose(0, 2, 1).reshape(len(w) * ROWS, -1)


def row_scales(d: Array) -> F32:
    """Scales or minima, float16 [Nb, G, 16] -> float32 [16 Nb, G]."""
    return d.transpose(0, 2, 1).reshape(len(d) * ROWS, -1).astype(np.float32)


def dequantise_q4(q: Array, d: Array, m: Array | None) -> F32:
    """float32 [16 Nb, 32 G]: nibble * d + m, or (nibble - 8) * d without minima."""
    scale = row_scales(d)
    low = row_scales(m) if m is not None else np.float32(-8) * scale
    values = nibbles(q).astype(np.float32).reshape(*scale.shape, GROUP)
    return (values * scale[:, :, None] + low[:, :, None]).reshape(len(scale), -1)


def dequantise_q8(q: Array, d: Array) -> F32:
    """float32 [16 Nb, 32 G]: q * d."""
    scale = row_scales(d)
    values = int8_rows(q).astype(np.float32).reshape(*scale.shape, GROUP)
    return (values * scale[:, :, None]).reshape(len(scale), -1)


# --- embeddings, norm, activations ------------------------------------------------------------------------------------


def embed_q4(tokens: Array, q: Array, d: Array, m: Array | None, k: int) -> F32:
    """Rows of the matrix for int64 ids [rows]: float32 [rows, k]. ``embed_q8`` and ``embed_f32`` alike."""
    return dequantise_q4(q, d, m)[tokens, :k]


def embed_q8(tokens: Array, q: Array, d: Array, k: int) -> F32:
    return dequantise_q8(q, d)[tokens, :k]


def embed_f32(tokens: Array, w: F32) -> F32:
    return float_rows(w)[tokens]


def rms_norm(x: F32, w: F32, epsilon: float) -> F32:
    """x [rows, k] / sqrt(mean(x**2) + epsilon) * w [k]; squares are float32: where their sum overflows, 0 comes out."""
    with np.errstate(over="ignore"):
        squares = (x.astype(np.float64) ** 2).sum(1, keepdims=True).astype(np.float32)
    scale = 1 / np.sqrt(squares.astype(np.float64) / x.shape[1] + epsilon)
    return _rounded(x * scale * w)


class Quantised(NamedTuple):
    """Activations in groups of 32, of one int8 term or two: terms int8 [rows, 1 or 2, 32 G] in -127..127, scales
    float32 [rows, G], sums float32 [rows, G] = scale * sum of the group's ``integers``."""

    terms: NDArray[np.int8]
    scales: F32
    sums: F32

    def integers(self) -> NDArray[np.int64]:
        """What times scale is the activation, int64 [rows, 32 G]: first, or SECOND_TERM * first + second."""
        wide = self.terms.astype(np.int64)
        return wide[:, 0] if wide.shape[1] == 1 else SECOND_TERM * wide[:, 0] + wide[:, 1]


def quantize(x: F32, terms: int = 1) -> Quantised:
    """x [rows, k], padded with zeros to whole groups, bit for bit as the kernel does it.

    With s = max|x| of a group: first = round(x * (127 / s)), ties to even, and scale = s / 127; the second term is what
    rounding left, in SECOND_TERM parts, and the scale then that much smaller. Groups with s <= 1e-30 become 0.
    """
    rows, k = x.shape
    groups = np.zeros((rows, -(-k // GROUP) * GROUP), np.float32)
    groups[:, :k] = x
    groups = groups.reshape(rows, -1, GROUP)
    largest = np.abs(groups).max(2)
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.where(largest > np.float32(1e-30), np.float32(127) / largest, np.float32(0))
    scaled = groups * inverse[:, :, None]
    parts, scales = [np.rint(scaled)], largest / np.float32(127)
    if terms == 2:
        parts.append(np.rint((scaled - parts[0]) * np.float32(SECOND_TERM)))
        scales = scales / np.float32(SECOND_TERM)
    result = Quantised(np.stack(parts, 1).astype(np.int8).reshape(rows, terms, -1), scales, scales)
    totals = result.integers().reshape(rows, -1, GROUP).sum(2)
    return result._replace(sums=scales * totals.astype(np.float32))


def activation_rows(x: Quantised) -> NDArray[np.uint8]:
    """The bytes that ``quantize`` writes, uint8 [rows, activation_bytes(k, terms)]; zeros after the sums."""
    rows, terms, k = x.terms.shape
    packed = np.zeros((rows, activation_bytes(k, terms)), np.uint8)
    joined = np.concatenate([np.ascontiguousarray(part).reshape(rows, -1).view(np.uint8) for part in x], axis=1)
    packed[:, : joined.shape[1]] = joined
    return packed


# --- linear layers ----------------------------------------------------------------------------------------------------


def _group_dots(x: Quantised, weights: NDArray[np.int64]) -> NDArray[np.int64]:
    """Exact integer dot products, int64 [rows, N, G]."""
    a = x.integers().reshape(len(x.terms), -1, GROUP)
    dots: NDArray[np.int64] = np.einsum("rgc,ngc->rng", a, weights.reshape(len(weights), -1, GROUP))
    return dots


def linear_q4(x: Quantised, q: Array, d: Array, m: Array | None) -> F32:
    """float32 [rows, 16 Nb]: sum over groups of d * scale * dot(nibbles, values) + low * sums; low is m or -8 d."""
    scale = row_scales(d).astype(np.float64)
    low = row_scales(m).astype(np.float64) if m is not None else -8 * scale
    y = (_group_dots(x, nibbles(q)) * x.scales[:, None, :].astype(np.float64) * scale).sum(2)
    return _rounded(y + x.sums.astype(np.float64) @ low.T)


def linear_q8(x: Quantised, q: Array, d: Array) -> F32:
    """float32 [rows, 16 Nb]: sum over groups of d * scale * dot(q, values)."""
    dots = _group_dots(x, int8_rows(q)) * x.scales[:, None, :].astype(np.float64)
    return _rounded((dots * row_scales(d)).sum(2))


def linear(x: F32, w: F32) -> F32:
    """x [rows, K] times dequantised weights [N, >= K]: float32 [rows, N]. The float-activation kernels, all formats."""
    return _rounded(x.astype(np.float64) @ w[:, : x.shape[1]].astype(np.float64).T)


# --- attention --------------------------------------------------------------------------------------------------------


def rope(x: F32, cos: F32, sin: F32, scale: float = 1.0) -> F32:
    """Rotate-half RoPE of x [rows, heads, dim] by cos, sin [rows, dim / 2], times ``scale``, all in float32."""
    half = x.shape[2] // 2
    a, b, c, s = x[:, :, :half], x[:, :, half:], cos[:, None, :], sin[:, None, :]
    return np.concatenate((a * c - b * s, b * c + a * s), axis=2) * np.float32(scale)


def pack_page(keys: Array, values: Array) -> Array:
    """One layer's page: keys, values [n_kv_heads, PAGE, dim] -> [n_kv_heads, 2 * PAGE * padded] of the same dtype.

    Per head the keys as [PAGE/16, padded, 16], then the values as [PAGE, padded]; padded = dim rounded up to 16.
    """
    heads, _, dim = keys.shape
    padded = -(-dim // 16) * 16
    page = np.zeros((heads, 2, PAGE, padded), keys.dtype)
    page[:, 0, :, :dim], page[:, 1, :, :dim] = keys, values
    blocks = page[:, 0].reshape(heads, PAGE // 16, 16, padded).transpose(0, 1, 3, 2)
    return np.concatenate((blocks.reshape(heads, -1), page[:, 1].reshape(heads, -1)), axis=1)


def unpack_page(page: Array, dim: int) -> tuple[Array, Array]:
    """Undoes ``pack_page``: keys, values [n_kv_heads, PAGE, dim]."""
    heads = len(page)
    padded = -(-dim // 16) * 16
    halves = page.reshape(heads, 2, PAGE * padded)
    keys = halves[:, 0].reshape(heads, PAGE // 16, padded, 16).transpose(0, 1, 3, 2).reshape(heads, PAGE, padded)
    return keys[:, :, :dim], halves[:, 1].reshape(heads, PAGE, padded)[:, :, :dim]


def attention(q: F32, keys: Array, values: Array, position: int) -> F32:
    """q [rows, n_heads, dim], rotated and scaled, over keys, values [n_kv_heads, positions, dim] of the cache; row i
    stands at ``position`` + i and sees what is not after it. float32 [rows, n_heads, dim]."""
    rows, n_heads, dim = q.shape
    n_kv_heads, n_positions, _ = keys.shape
    grouped = q.astype(np.float64).reshape(rows, n_kv_heads, n_heads // n_kv_heads, dim)
    scores = np.einsum("rhgd,htd->rhgt", grouped, keys.astype(np.float64))
    hidden = np.arange(n_positions)[None, :] > position + np.arange(rows)[:, None]
    scores[np.broadcast_to(hidden[:, None, None, :], scores.shape)] = -np.inf
    p = np.exp(scores - scores.max(3, keepdims=True))
    y = np.einsum("rhgt,htd->rhgd", p / p.sum(3, keepdims=True), values.astype(np.float64))
    return _rounded(y.reshape(rows, n_heads, dim))


# --- elementwise ------------------------------------------------------------------------------------------------------


def exp(x: Array) -> NDArray[np.float64]:
    """e**x with x clamped to EXP_RANGE, in float64."""
    result: NDArray[np.float64] = np.exp(np.clip(x.astype(np.float64), *EXP_RANGE))
    return result


def silu(x: Array) -> NDArray[np.float64]:
    """x / (1 + e**-x), in float64."""
    return x / (1 + exp(-x))


def swiglu(gate: F32, up: F32) -> F32:
    """silu(gate) * up."""
    return _rounded(silu(gate) * up)


# --- sampling ---------------------------------------------------------------------------------------------------------


def argmax(logits: F32) -> int:
    """The id of the largest logit, the smallest id among equals."""
    return int(np.argmax(logits))


def exp_sum(logits: F32) -> float:
    """sum(exp(logits - max(logits)))."""
    return float(exp(logits - logits.max()).sum())


def penalize(logits: F32, ids: Array, counts: Array, repetition: float, presence: float, frequency: float) -> F32:
    """New logits: those of the distinct ``ids`` divided (negative ones multiplied) by ``repetition``; where ``counts``
    > 0 less ``presence`` and ``frequency`` * count. Computed in float64, rounded once."""
    changed = logits.copy()
    x = logits[ids].astype(np.float64)
    x = np.where(x > 0, x / repetition, x * repetition)
    changed[ids] = np.where(counts > 0, x - (presence + frequency * counts), x)
    return changed


class Choices(NamedTuple):
    """What sampling may choose: ids int64 [m] in the order in which they share the unit interval, their
    probabilities float64 [m]."""

    ids: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    def choose(self, uniform: float) -> int:
        """The id for a number in [0, 1)."""
        index = int(np.searchsorted(np.cumsum(self.probabilities), uniform, side="right"))
        return int(self.ids[min(index, len(self.ids) - 1)])


def sampling_choices(logits: F32, temperature: float, top_k: int, top_p: float, min_p: float) -> Choices:
    """Temperature, then min-p (relative to the likeliest), then top-k, then top-p (the fewest likeliest ids of those
    left whose probabilities sum to top_p or more). 0, 1 and 0 switch a filter off.

    The order is by probability, among equals by id, where top-k or top-p had to rank; else by id.
    """
    weights = exp((logits - logits.max()).astype(np.float64) / temperature)
    ids = np.flatnonzero(weights >= min_p)
    if 0 < top_k < len(ids) or top_p < 1:
        ids = ids[np.lexsort((ids, -logits[ids]))]
        if top_k > 0:
            ids = ids[:top_k]
        shares = np.cumsum(weights[ids]) / weights[ids].sum()
        if top_p < 1:
            ids = ids[: int(np.searchsorted(shares, top_p, side="left")) + 1]
    return Choices(ids, weights[ids] / weights[ids].sum())
