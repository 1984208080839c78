"""Every kernel in plain numpy: the specification that the compiled ones are tested against.

Weights come as they are stored (see ``linear.py``); everything else in its natural shape, without padding. Where a
kernel's result is decided bit by bit (integers, one float32 operation per value) so is its twin's; where it sums
float32 numbers, the twin sums in float64 and rounds once.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .record import (
    BLOCK,
    GROUP,
    PAGE,
    ROW_SCALES,
    ROWS,
    SECOND_TERM,
    SUPER_GROUPS,
    TILE_HEADER,
    TILE_ROWS,
    activation_bytes,
    block_bytes,
    first_stride,
    kv_head_bytes,
    padded_head,
    row_activation_bytes,
    second_start,
    second_stride,
)

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


def bit_pairs(q: Array) -> NDArray[np.int64]:
    """Bytes uint8 [Nb, lines, 16, 4] of four numbers 0..3 -> int64 [16 Nb, 16 lines]: column line*16 + pair*4 + j."""
    pairs = np.stack([q >> 2 * i & 3 for i in range(4)], axis=-1)
    return pairs.transpose(0, 2, 1, 4, 3).reshape(len(q) * ROWS, -1).astype(np.int64)


def q6k_rows(q: Array) -> NDArray[np.int64]:
    """q6k bytes uint8 [Nb, G, 6, 16, 4] -> -32..31, int64 [16 Nb, 32 G]."""
    high = q[:, :, [0, 3]].reshape(len(q), -1, ROWS, 4)
    return nibbles(q[:, :, [1, 2, 4, 5]]) + 16 * bit_pairs(high) - 32


def q6k_factors(s: Array) -> NDArray[np.int64]:
    """int8 [Nb, G, 2, 16] -> int64 [16 Nb, 2 G]: one for every 16 columns."""
    return s.transpose(0, 3, 1, 2).reshape(len(s) * ROWS, -1).astype(np.int64)


def dequantise_q6k(q: Array, s: Array, d: Array) -> F32:
    """float32 [16 Nb, 32 G]: q * s * d, the product of the integers first."""
    numbers = q6k_rows(q) * np.repeat(q6k_factors(s), GROUP // 2, axis=1)
    scale = np.repeat(row_scales(d), GROUP * SUPER_GROUPS, axis=1)[:, : numbers.shape[1]]
    return numbers.astype(np.float32) * scale


def ternary_rows(q: Array) -> NDArray[np.int64]:
    """Ternary bytes uint8 [Nb, G, 2, 16, 4] -> -1..1, int64 [16 Nb, 32 G]; by columns, uint8 [32 G, Sn, 4, 4, 4] ->
    [256 Sn, 32 G]; in codes of three, uint8 [P, M, U, 5, 16, 4] -> [32 M, 48 U P]."""
    if q.ndim == 6:
        return _triples(q)
    if q.shape[2] == 4:
        pairs = np.stack([q >> 2 * p & 3 for p in range(4)], 2).swapaxes(3, 4)
        return pairs.reshape(len(q), -1).T.astype(np.int64) - 1
    return bit_pairs(q.reshape(len(q), -1, ROWS, 4)) - 1


def _triples(q: Array) -> NDArray[np.int64]:
    n_parts, n_blocks, n_units = q.shape[:3]
    words = q[..., 0::2] + 256 * q[..., 1::2].astype(np.int64)
    trits = np.empty((n_blocks, 2, 16, n_parts, n_units, 3, 16), np.int64)
    for i in range(16):
        if i < 15:
            code = words[:, :, :, i // 3] >> 5 * (i % 3) & 31
        else:
            code = (words >> 15 << np.arange(5)[:, None, None]).sum(3)
        for third, digit in enumerate((code % 9 % 3, code % 9 // 3, code // 9)):
            trits[:, :, :, :, :, third, i] = digit.transpose(1, 4, 3, 0, 2) - 1
    return trits.reshape(32 * n_blocks, -1)


# --- embeddings, norm, activations ------------------------------------------------------------------------------------


def embed_q4(tokens: Array, q: Array, d: Array, m: Array | None, k: int) -> F32:
    """Rows of the matrix for int64 ids [rows]: float32 [rows, k]. ``embed_q8`` and ``embed_f32`` alike."""
    return dequantise_q4(q, d, m)[tokens, :k]


def embed_q8(tokens: Array, q: Array, d: Array, k: int) -> F32:
    return dequantise_q8(q, d)[tokens, :k]


def embed_q6k(tokens: Array, q: Array, s: Array, d: Array, k: int) -> F32:
    return dequantise_q6k(q, s, d)[tokens, :k]


def embed_f32(tokens: Array, w: F32) -> F32:
    return float_rows(w)[tokens]


def rms_norm(x: F32, w: F32, epsilon: float) -> F32:
    """x [rows, k] / sqrt(mean(x**2) + epsilon) * w [k]; squares are float32: where their sum overflows, 0 comes out."""
    with np.errstate(over="ignore"):
        squares = (x.astype(np.float64) ** 2).sum(1, keepdims=True).astype(np.float32)
    scale = 1 / np.sqrt(squares.astype(np.float64) / x.shape[1] + epsilon)
    return _rounded(x * scale * w)


class Quantised(NamedTuple):
    """Activations in groups of 32: float32 scale * (first + second / SECOND_TERM), the second only where
    ``has_second``. Terms int8 [rows, 32 G] in -127..127, the rest [rows, G]; sums are of the values, float32."""

    first: NDArray[np.int8]
    second: NDArray[np.int8]
    has_second: NDArray[np.bool_]
    scales: F32
    sums: F32

    def second_scales(self) -> F32:
        """float32 [rows, G]: what the second terms are multiplied by."""
        return self.scales / np.float32(SECOND_TERM)

    def values(self) -> NDArray[np.float64]:
        """The activations that the terms stand for, float64 [rows, 32 G]."""
        both = self.first.astype(np.float64) + self.second.astype(np.float64) / SECOND_TERM
        return both * np.repeat(self.scales, GROUP, axis=1)

    def rows(self, part: slice) -> "Quantised":
        return Quantised(self.first[part], self.second[part], self.has_second[part], self.scales[part], self.sums[part])


def root_mean_square(x: F32) -> F32:
    """Of whole groups [rows, 32 G]: float32 [rows], summed in float32 in 16 lanes, then lane i with lane i + 8, ..."""
    lanes = np.zeros((len(x), 16), np.float32)
    with np.errstate(over="ignore", under="ignore"):
        for i in range(0, x.shape[1], 16):
            lanes = lanes + x[:, i : i + 16] * x[:, i : i + 16]
        while lanes.shape[1] > 1:
            half = lanes.shape[1] // 2
            lanes = lanes[:, :half] + lanes[:, half:]
        return _rounded(np.sqrt(lanes[:, 0] / np.float32(x.shape[1])))


def quantize(x: F32, threshold: float = np.inf) -> Quantised:
    """x [rows, k], padded with zeros to whole groups, bit for bit as the kernel does it.

    With s = max|x| of a group: first = round(x * (127 / s)), ties to even, and scale = s / 127; the second term is what
    rounding left, in SECOND_TERM parts, in groups with s > threshold * rms(row). Groups with s <= 1e-30 become 0. Where
    the squares overflow float32, rms is infinite and no group has a second term.
    """
    rows, k = x.shape
    whole = np.zeros((rows, -(-k // GROUP) * GROUP), np.float32)
    whole[:, :k] = x
    groups = whole.reshape(rows, -1, GROUP)
    largest = np.abs(groups).max(2)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.where(largest > np.float32(1e-30), np.float32(127) / largest, np.float32(0))
        has_second = largest > (np.float32(threshold) * root_mean_square(whole))[:, None]
    scaled = groups * inverse[:, :, None]
    first = np.rint(scaled)
    second = np.rint((scaled - first) * np.float32(SECOND_TERM)) * has_second[:, :, None]
    scales = largest / np.float32(127)
    sums = scales * (first.sum(2) + second.sum(2) / np.float32(SECOND_TERM))
    one, two = (part.astype(np.int8).reshape(rows, -1) for part in (first, second))
    return Quantised(one, two, has_second, scales, sums)


def activation_tiles(x: Quantised) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The bytes that ``quantize`` writes, [tiles, activation_bytes(k, rows)], and which of them mean anything: tiles of
    one row if x is one, else of TILE_ROWS, the last filled up with rows of zeros. Other bytes are 255 here."""
    rows = 1 if len(x.first) == 1 else TILE_ROWS
    n_tiles, n_groups = -(-len(x.first) // rows), x.scales.shape[1]
    terms = [("terms", np.int8, (rows, GROUP)), ("scales", np.float32, rows)]
    terms += [("offsets", np.int32, rows), ("half_offsets", np.int32, rows)]
    first = np.zeros((n_tiles, n_groups), [*terms, ("sums", np.float32, rows)])
    second = np.zeros((n_tiles, n_groups), [("group", np.int64), *terms])
    second["group"] = np.arange(n_groups)
    assert (first.itemsize, second.itemsize) == (first_stride(rows), second_stride(rows))

    def by_tile(part: Array) -> Array:
        """[rows, G, ...] -> [tiles, G, rows of a tile, ...]"""
        filled = np.zeros((n_tiles * rows, *part.shape[1:]), part.dtype)
        filled[: len(part)] = part
        return filled.reshape(n_tiles, rows, *part.shape[1:]).swapaxes(1, 2)

    for target, ints, scales in ((first, x.first, x.scales), (second, x.second, x.second_scales())):
        groups = ints.reshape(len(ints), n_groups, GROUP)
        target["terms"], target["scales"] = by_tile(groups), by_tile(scales)
        target["offsets"] = by_tile(-8 * groups.sum(2, dtype=np.int32))
        target["half_offsets"] = by_tile(-8 * groups[:, :, : GROUP // 2].sum(2, dtype=np.int32))
    first["sums"] = by_tile(x.sums)
    has_entry = np.any(by_tile(x.has_second), axis=2)
    tiles = np.full((n_tiles, activation_bytes(n_groups * GROUP, rows)), 255, np.uint8)
    meaningful = np.zeros(tiles.shape, bool)
    start = second_start(n_groups, rows)
    for tile, means, one, two, has in zip(tiles, meaningful, first, second, has_entry, strict=True):
        end = start + has.sum() * second.itemsize
        tile[:8] = np.frombuffer(np.int64(has.sum()).tobytes(), np.uint8)
        tile[TILE_HEADER:start], tile[start:end] = one.view(np.uint8), two[has].view(np.uint8)
        means[:8] = means[TILE_HEADER:end] = True
    return tiles, meaningful


class QuantisedRows(NamedTuple):
    """Activations with one scale a row: int8 [rows, 32 G] in -127..127, padding 0, and float32 [rows]."""

    ints: NDArray[np.int8]
    scales: F32

    def rows(self, part: slice) -> "QuantisedRows":
        return QuantisedRows(self.ints[part], self.scales[part])


def quantize_rows(x: F32) -> QuantisedRows:
    """x [rows, k], padded with zeros to whole groups, bit for bit as the kernel does it: round(x * (127 / max|x|)),
    ties to even, max|x| at least 1e-5; scale max|x| / 127."""
    whole = np.zeros((len(x), -(-x.shape[1] // GROUP) * GROUP), np.float32)
    whole[:, : x.shape[1]] = x
    largest = np.maximum(np.abs(whole).max(1), np.float32(1e-5))
    ints = np.rint(whole * (np.float32(127) / largest)[:, None])
    return QuantisedRows(ints.astype(np.int8), largest / np.float32(127))


def row_tiles(x: QuantisedRows) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """The bytes that ``quantize_rows`` writes, [tiles, row_activation_bytes(k, rows)], and which of them mean anything:
    tiles of one row if x is one, else of TILE_ROWS, the last filled up with rows of zeros. Other bytes are 255 here."""
    rows = 1 if len(x.ints) == 1 else TILE_ROWS
    n_tiles, k = -(-len(x.ints) // rows), x.ints.shape[1]
    ints, scales = np.zeros((n_tiles * rows, k), np.int8), np.zeros(n_tiles * rows, np.float32)
    ints[: len(x.ints)], scales[: len(x.ints)] = x.ints, x.scales
    groups = ints.reshape(n_tiles, rows, -1, GROUP).swapaxes(1, 2).reshape(n_tiles, -1)
    offsets = -ints.sum(1, dtype=np.int32)
    tiles = np.full((n_tiles, row_activation_bytes(k, rows)), 255, np.uint8)
    meaningful = np.zeros(tiles.shape, bool)
    for start, part in ((0, offsets), (ROW_SCALES, scales), (TILE_HEADER, groups)):
        part = part.reshape(n_tiles, -1).view(np.uint8)
        tiles[:, start : start + part.shape[1]] = part
        meaningful[:, start : start + part.shape[1]] = True
    return tiles, meaningful


def squared_relu(gate: F32, up: F32) -> F32:
    """max(gate, 0)**2 * up, float32, one rounding a product."""
    positive = np.where(gate > 0, gate, np.float32(0))
    return _rounded(positive * positive * up)


def stacked_columns(q: Array, n: int, bits: int) -> NDArray[np.int64]:
    """Weights that lie column by column, uint8 [32 G, lines, 64] (see ``edgerun.sparsity.layout``) -> int64 [n, 32 G]:
    codes 0..15, or -128..127."""
    plain = q.reshape(*q.shape[:2], 4, 4, 4).swapaxes(2, 3).reshape(*q.shape[:2], 64)
    if bits == 4:
        plain = np.concatenate([plain & 15, plain >> 4], axis=2)
    rows = plain.reshape(len(q), -1)[:, :n].T
    return rows.view(np.int8).astype(np.int64) if bits == 8 else rows.astype(np.int64)


def sizes(x: Quantised, worth: F32) -> F32:
    """|value| times what the input is worth [k], float32 [rows, 32 G]."""
    first, second = x.first.astype(np.float32), x.second.astype(np.float32)
    part = np.float32(1) / np.float32(SECOND_TERM)
    both = _rounded(second.astype(np.float64) * part + first.astype(np.float64))
    padded = np.zeros(x.first.shape[1], np.float32)
    padded[: len(worth)] = worth
    with np.errstate(over="ignore", under="ignore"):
        return _rounded(np.abs(both * np.repeat(x.scales, GROUP, axis=1) * padded))


def keep_large(x: Quantised, keep: NDArray[np.bool_]) -> Quantised:
    """x with 0 where ``keep`` [rows, 32 G] does not hold, and the sums of what is left."""
    first, second = (np.where(keep, part, 0).astype(np.int8) for part in (x.first, x.second))
    one, two = (part.reshape(*x.scales.shape, GROUP).sum(2).astype(np.float32) for part in (first, second))
    sums = x.scales * (one + np.where(x.has_second, two / np.float32(SECOND_TERM), np.float32(0)))
    return x._replace(first=first, second=second, sums=sums)


def row_sizes(x: QuantisedRows, worth: F32) -> F32:
    """``sizes`` of rows with one scale, in its steps."""
    padded = np.zeros(x.ints.shape[1], np.float32)
    padded[: len(worth)] = worth
    size: F32 = np.abs(x.ints.astype(np.float32) * padded)
    return size


def keep_rows(x: QuantisedRows, keep: NDArray[np.bool_]) -> QuantisedRows:
    """x with 0 where ``keep`` [rows, 32 G] does not hold."""
    return x._replace(ints=np.where(keep, x.ints, np.int8(0)))


class Rests:
    """At which positions a layer of delta activations looks for what has moved: none for 1, 3, 7, then 15 positions
    after each time in a row that it was too much."""

    def __init__(self) -> None:
        self._end = self._count = 0

    def looks(self, position: int) -> bool:
        return position >= self._end

    def looked(self, position: int, too_much: bool) -> None:
        self._count = min(2 * self._count + 1, 15) if too_much else 0
        self._end = position + 1 + self._count


class DeltaInput:
    """The inputs of a layer as delta activations send them, one row after the other (arXiv 2107.07305): references and
    changes are integers, in steps."""

    HIGH, MOST, FARTHEST = 128, 127 * 128, 1 << 21

    def __init__(self, worth: F32, threshold: float) -> None:
        """worth: float32 [k]."""
        self.worth = np.zeros(-(-len(worth) // GROUP) * GROUP)
        self.worth[: len(worth)] = worth
        self.threshold = threshold
        self.step = 0.0
        self.references: NDArray[np.int64] | None = None

    def send(self, x: Quantised, step: float | None = None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """One row: its changes [32 G], which become part of the references, and which of them are so near the threshold
        that rounding decides. step: a power of two, to compute afresh with."""
        both = _rounded(x.second[0] * np.float64(np.float32(1) / np.float32(SECOND_TERM)) + x.first[0])
        value = (both * np.repeat(x.scales[0], GROUP)).astype(np.float64)
        if step is not None:
            self.step, self.references = step, np.zeros(len(value), np.int64)
        assert self.references is not None
        place = np.rint(np.clip(value / self.step, -self.FARTHEST, self.FARTHEST)).astype(np.int64)
        changes = np.clip(place - self.references, -self.MOST, self.MOST)
        limit = 0.0
        if step is None:
            limit = self.threshold * np.sqrt(np.square(value * self.worth).mean())
        size = np.abs(changes) * self.step * self.worth
        changes[size < limit] = 0
        self.references += changes
        return changes, (np.abs(size - limit) <= 1e-5 * limit) & (limit > 0)

    def terms(self, changes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """changes = low + HIGH * high, both int8."""
        high = (changes + self.HIGH // 2) // self.HIGH
        return changes - self.HIGH * high, high


# --- linear layers ----------------------------------------------------------------------------------------------------


def _products(x: Quantised, weights: NDArray[np.int64], scale: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sum over groups of scale * (first's scale * dot(first) + second's scale * dot(second)): [rows, N]."""
    w = weights.reshape(len(weights), -1, GROUP)
    y = np.zeros((len(x.first), len(w)))
    for ints, scales in ((x.first, x.scales), (x.second, x.second_scales())):
        a = ints.astype(np.int64).reshape(len(ints), -1, GROUP)
        dots = np.einsum("rgc,ngc->rng", a, w) * scales[:, None, :].astype(np.float64)
        y += (dots * scale).sum(2)
    return y


def linear_q4(x: Quantised, q: Array, d: Array, m: Array | None) -> F32:
    """float32 [rows, 16 Nb]: sums over groups of d * dot(nibbles - 8, x), or d * dot(nibbles, x) + m * sum."""
    scale = row_scales(d).astype(np.float64)
    if m is None:
        return _rounded(_products(x, nibbles(q) - 8, scale))
    return _rounded(_products(x, nibbles(q), scale) + x.sums.astype(np.float64) @ row_scales(m).astype(np.float64).T)


def linear_q8(x: Quantised, q: Array, d: Array) -> F32:
    """float32 [rows, 16 Nb]: sum over groups of d * dot(q, x)."""
    return _rounded(_products(x, int8_rows(q), row_scales(d).astype(np.float64)))


def linear_q6k(x: Quantised, q: Array, s: Array, d: Array) -> F32:
    """float32 [rows, 16 Nb]: sum over groups of d * (sum over both halves of s * dot(q, x))."""
    numbers = q6k_rows(q) * np.repeat(q6k_factors(s), GROUP // 2, axis=1)
    scale = np.repeat(row_scales(d), SUPER_GROUPS, axis=1)[:, : q.shape[1]]
    return _rounded(_products(x, numbers, scale.astype(np.float64)))


def linear_ternary(x: QuantisedRows, q: Array, d: Array) -> F32:
    """float32 [rows, 16 Nb, 32 M or 256 Sn]: dot(trits, x), exact in integers, times (d * scale), bit for bit as
    the kernel does it."""
    w = ternary_rows(q)
    k = min(w.shape[1], x.ints.shape[1])  # what is beyond one of them is padding of the other
    dots = x.ints[:, :k].astype(np.int64) @ w[:, :k].T
    return _rounded(dots.astype(np.float32) * (d * x.scales[:, None]) + np.float32(0))


def linear(x: F32, w: F32) -> F32:
    """x [rows, K] times dequantised weights [N, >= K]: float32 [rows, N]. The float-activation kernels, all formats."""
    return _rounded(x.astype(np.float64) @ w[:, : x.shape[1]].astype(np.float64).T)


# --- attention --------------------------------------------------------------------------------------------------------


def rope(x: F32, cos: F32, sin: F32, scale: float = 1.0) -> F32:
    """Rotate-half RoPE of x [rows, heads, dim] by cos, sin [rows, dim / 2], times ``scale``, all in float32."""
    half = x.shape[2] // 2
    a, b, c, s = x[:, :, :half], x[:, :, half:], cos[:, None, :], sin[:, None, :]
    return np.concatenate((a * c - b * s, b * c + a * s), axis=2) * np.float32(scale)


CACHES = ("f16", "f32", "q8")
UNWRITTEN = 255
"""What this module leaves in the bytes of a page that the kernels do not write."""


def _narrow(numbers: Array) -> NDArray[np.int8]:
    """Rounded to integers, of which the low byte is stored."""
    return np.rint(numbers).astype(np.int32).astype(np.int8)


def quantize_keys(keys: F32) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """keys [..., dim] -> int8 [..., 32 G], float16 scales [..., G] of groups of 32 features, bit for bit.

    scale = float16(max|x| / 127 * 1.0005 + 2**-25): no more than 127 scales are needed; and round(x * (1 / scale)).
    """
    *front, dim = keys.shape
    padded = np.zeros((*front, -(-dim // GROUP) * GROUP), np.float32)
    padded[..., :dim] = keys
    groups = padded.reshape(*front, padded.shape[-1] // GROUP, GROUP)
    scales = (np.abs(groups).max(-1) / np.float32(127) * np.float32(1.0005) + np.float32(2.0**-25)).astype(np.float16)
    wide = scales.astype(np.float32)
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    return _narrow(groups * inverse[..., None]).reshape(padded.shape), scales


def quantize_values(values: F32) -> tuple[NDArray[np.int8], F32]:
    """values [..., dim] -> int8 [..., dim], float32 scales [...]: scale = max|x| / 127, and round(x * (1 / scale))."""
    scales = np.abs(values).max(-1) / np.float32(127)
    inverse = np.divide(np.float32(1), scales, out=np.zeros_like(scales), where=scales > 0)
    return _narrow(values * inverse[..., None]), scales


def _page_parts(cache: str, dim: int, page: NDArray[np.uint8]) -> dict[str, Array]:
    """Views [n_kv_heads, PAGE / BLOCK, ...] of a page's heads [n_kv_heads, bytes]: see the table in
    ``attention_cache.py``."""
    padded = padded_head(cache, dim)
    groups = padded // GROUP
    kind = np.float16 if cache == "f16" else np.float32
    fields: dict[str, tuple[Any, tuple[int, ...]]] = {
        "keys": (kind, (padded, BLOCK)),
        "values": (kind, (BLOCK, padded)),
    }
    if cache == "q8":
        fields = {
            "keys": (np.int8, (groups, GROUP // 4, BLOCK, 4)),
            "key_scales": (np.float16, (groups, BLOCK)),
            "values": (np.int8, (BLOCK, padded)),
            "value_scales": (np.float32, (BLOCK,)),
        }
    block = np.dtype([(name, kind, shape) for name, (kind, shape) in fields.items()])
    assert block.itemsize == block_bytes(cache, dim)
    blocks = page.view(block)
    return {name: blocks[name] for name in fields}


def _by_position(cache: str, keys: Array) -> Array:
    """A view of stored keys [heads, PAGE / n, ..., n, ...] as [heads, PAGE / n, n, ...], features last."""
    return keys.transpose(0, 1, 4, 2, 3, 5) if cache == "q8" else keys.transpose(0, 1, 3, 2)


def pack_page(cache: str, keys: F32, values: F32) -> NDArray[np.uint8]:
    """One layer's page [n_kv_heads, kv_head_bytes] as the kernel leaves it after writing the first positions: keys,
    values [n_kv_heads, positions, dim], float32. All else is UNWRITTEN, which is NaN as a float."""
    heads, count, dim = keys.shape
    narrow: Array
    page = np.full((heads, kv_head_bytes(cache, dim)), UNWRITTEN, np.uint8)
    parts = _page_parts(cache, dim, page)
    stored = _by_position(cache, parts["keys"])
    block, lane = np.divmod(np.arange(count), BLOCK)
    if cache == "q8":
        ints, scales = quantize_keys(keys)
        stored[:, block, lane] = ints.reshape(heads, count, *stored.shape[3:])
        parts["key_scales"].swapaxes(2, 3)[:, block, lane] = scales
        narrow, parts["value_scales"][:, block, lane] = quantize_values(values)
    else:
        with np.errstate(over="ignore"):
            stored[:, block, lane, :dim] = keys.astype(stored.dtype)
            narrow = values.astype(stored.dtype)
    parts["values"][:, block, lane] = 0
    parts["values"][:, block, lane, :dim] = narrow
    return page


def unpack_page(cache: str, page: NDArray[np.uint8], dim: int) -> tuple[F32, F32]:
    """The numbers that a page stands for: keys, values [n_kv_heads, PAGE, dim], float32."""
    parts = _page_parts(cache, dim, page)
    keys = _by_position(cache, parts["keys"]).astype(np.float32)
    values = parts["values"].astype(np.float32)
    if cache == "q8":
        scales = parts["key_scales"].swapaxes(2, 3).astype(np.float32)
        keys = keys * scales[..., None, None]
        values = values * parts["value_scales"][..., None]
    return keys.reshape(len(page), PAGE, -1)[:, :, :dim], values.reshape(len(page), PAGE, -1)[:, :, :dim]


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


# --- sparse deltas of a variant ---------------------------------------------------------------------------------------


def sparse_delta(x: F32, delta: F32, y: F32, weight: float) -> F32:
    """y [rows, n] + weight * x [rows, k] delta [n, k]^T."""
    return _rounded(y + np.float64(np.float32(weight)) * (x.astype(np.float64) @ delta.astype(np.float64).T))


def embed_delta(tokens: Array, delta: F32, y: F32, weight: float) -> F32:
    """y [rows, k] + weight * the tokens' rows of delta [n, k]."""
    return _rounded(y + np.float64(np.float32(weight)) * delta.astype(np.float64)[tokens])


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
