"""How weights lie in a model package: 16 rows interleaved, so that one load feeds 16 rows of a kernel.

A matrix of N rows and K columns has Nb = ceil(N/16) row blocks and G = ceil(K/32) groups of columns:

======  ================================  ==================================================  ====================
format  tensors                           which element                                       value
======  ================================  ==================================================  ====================
q4      q uint8 [Nb, G, 4, 16, 4]         byte (b, g, c, r, j): row b*16+r; low nibble        (nibble - 8) * d
        d float16 [Nb, G, 16]             column g*32+c*8+j, high nibble column +4            (GGUF Q4_0)
q4m     q, d as q4; m float16 as d        as q4                                               nibble * d + m (Q4_1)
q8      q int8 [Nb, G, 8, 16, 4]          (b, g, c, r, j): row b*16+r, column g*32+c*4+j      q * d (Q8_0)
        d float16 [Nb, G, 16]
q6k     q uint8 [Nb, G, 6, 16, 4]         lines 1, 2, 4, 5 as q4's: the low 4 bits; line 3h,  (q - 32) * s * d
        s int8 [Nb, G, 2, 16]             bits 2p and 2p+1: the high 2 bits of column         (GGUF Q6_K)
        d float16 [Nb, ceil(G/8), 16]     g*32+h*16+p*4+j; s of every 16 columns, d of 256
ternary q uint8 [Nb, G, 2, 16, 4]         byte (b, g, h, r, j), bits 2p and 2p+1: row         (q - 1) * d
        d float32 [1]                     b*16+r, column g*32+h*16+p*4+j                      (BitNet)
ternary q uint8 [32 G, Sn, 4, 4, 4]       byte (k, s, a, u, r), bits 2p and 2p+1: row         (q - 1) * d
columns d float32 [1]                     s*256+p*64+u*16+a*4+r, column k; Sn = ceil(N/256)
ternary q uint8 [P, Ms, U, 5, 16, 4]      16 codes t0 + 3 t1 + 9 t2 a row and unit: t0, t1, t2     (t - 1) * d
triples                                   of columns p*U*48 + u*48 + i, + 16 and + 32 are code i;
        d float32 [1]                     word (p, m, u, l, r, h), low byte first, row m*32+h*16+r:
                                          codes 3l, 3l+1, 3l+2 from its low bits on, and bit l of
                                          code 15; Ms = ceil(N/32), P parts of U units of columns
f32     w float32 [Nb, K, 16]             (b, k, r): row b*16+r, column k                     w
======  ================================  ==================================================  ====================

In ``ternary_columns`` a column's bytes lie together, for kernels that leave out columns whose input is zero;
``ternary_triples`` takes 1.67 bits a weight, for memory that is slower than the processor.
Padding rows and columns hold the value 0 (q4: nibble 8; q6k: 32; ternary: 1; all others: 0; scales and factors: 0).
Everything here works on blocks of rows, so that temporaries stay at a few MiB whatever the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.package import triples
from edgerun_kernels.record import COLUMN_ROWS as COLUMN_ROWS
from edgerun_kernels.record import GROUP as GROUP  # the kernels' own numbers: a package is laid out for them
from edgerun_kernels.record import ROWS as ROWS
from edgerun_kernels.record import SUPER_GROUPS as SUPER_GROUPS

Array = NDArray[Any]
_CHUNK_ELEMENTS = 1 << 20


class Part(NamedTuple):
    """What one tensor of a stored matrix must be."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Unpacked(NamedTuple):
    """A matrix in plain row order: values [N, K] (uint8 codes, int8 or float32); scales d, minima m and factors s as
    `pack` takes them, or None."""

    values: Array
    d: Array | None = None
    m: Array | None = None
    s: Array | None = None


class _Format(NamedTuple):
    """How a format's numbers lie. public: the name that users know, from GGUF. payload: dtype of "q" or "w". lines: of
    64 bytes that 16 rows by 32 columns take. parts: names of the tensors. largest: greatest code. zero: the code of 0.
    """

    public: str
    payload: str
    lines: int
    parts: tuple[str, ...]
    largest: int = 127
    zero: int = 0


_FORMATS = {
    "q4": _Format("q4_0", "u1", 4, ("q", "d"), 15, 8),
    "q4m": _Format("q4_1", "u1", 4, ("q", "d", "m"), 15),
    "q8": _Format("q8_0", "i1", 8, ("q", "d")),
    "q6k": _Format("q6_k", "u1", 6, ("q", "s", "d"), 63, 32),
    "ternary": _Format("ternary", "u1", 2, ("q", "d"), 2, 1),
    "ternary_columns": _Format("ternary", "u1", 2, ("q", "d"), 2, 1),
    "ternary_triples": _Format("ternary", "u1", 2, ("q", "d"), 2, 1),
    "f32": _Format("f32", "<f4", 32, ("w",)),
}
LOW_LINES, HIGH_LINES = [1, 2, 4, 5], [0, 3]
"""Of q6k: in the order in which a kernel needs them, which is how memory gives them fastest."""
_WHOLE = ("ternary_columns", "ternary_triples")
"""Formats that do not lie row block by row block."""
FORMATS = tuple(_FORMATS)


def public_name(fmt: str) -> str:
    """A format by the name that users know from GGUF ("q4m" -> "q4_1")."""
    return _FORMATS[fmt].public


def parts(fmt: str, n: int, k: int) -> dict[str, Part]:
    """The tensors of an n x k matrix stored as `fmt`: "q", "d", "m", "s", "w" -> Part, in the operators' order."""
    if fmt not in _FORMATS:
        raise ValueError(f"unknown weight format {fmt!r}, not one of {', '.join(FORMATS)}")
    blocks, groups = -(-n // ROWS), -(-k // GROUP)
    if fmt == "f32":
        return {"w": Part(np.dtype("<f4"), (blocks, k, ROWS))}
    if fmt == "ternary_columns":
        shape = (groups * GROUP, -(-n // COLUMN_ROWS), 4, 4, 4)
        return {"q": Part(np.dtype("u1"), shape), "d": Part(np.dtype("<f4"), (1,))}
    if fmt == "ternary_triples":
        return {"q": Part(np.dtype("u1"), triples.shape(n, k)), "d": Part(np.dtype("<f4"), (1,))}
    wanted = {"q": Part(np.dtype(_FORMATS[fmt].payload), (blocks, groups, _FORMATS[fmt].lines, ROWS, 4))}
    if fmt == "ternary":
        return wanted | {"d": Part(np.dtype("<f4"), (1,))}
    if fmt == "q6k":
        scales = Part(np.dtype("<f2"), (blocks, -(-groups // SUPER_GROUPS), ROWS))
        return wanted | {"s": Part(np.dtype("i1"), (blocks, groups, 2, ROWS)), "d": scales}
    scales = Part(np.dtype("<f2"), (blocks, groups, ROWS))
    return wanted | dict.fromkeys(_FORMATS[fmt].parts[1:], scales)


def pack(
    fmt: str, values: Array, d: Array | None = None, m: Array | None = None, s: Array | None = None
) -> dict[str, Array]:
    """Interleave a matrix.

    values: [N, K]; uint8 codes 0..15 (q4, q4m), 0..63 (q6k) or 0..2 (ternary), int8 (q8) or float32 (f32).
    d: scales [N, G], q4, q4m and q8; [N, ceil(G/8)], q6k; [1] float32, ternary.  m: minima [N, G], q4m only.
    s: int8 factors [N, 2 G], q6k only. Scales and minima are stored as float16.
    Returns the tensors that `parts(fmt, N, K)` describes. Raises ValueError if an argument does not fit the format.
    """
    n, k = values.shape
    wanted = parts(fmt, n, k)
    kind = _FORMATS[fmt]
    beside = {"d": d, "m": m, "s": s}
    for suffix, given in beside.items():
        if (given is not None) != (suffix in wanted):
            raise ValueError(f"{fmt} {'needs' if given is None else 'has no'} {suffix}")
        if given is not None and given.shape != (shape := _plain_shape(suffix, wanted[suffix].shape, n)):
            raise ValueError(f"{suffix} has shape {given.shape}, expected {shape}")
    payload = "w" if fmt == "f32" else "q"
    if values.dtype != wanted[payload].dtype:
        raise ValueError(f"{fmt} needs {wanted[payload].dtype} values, got {values.dtype}")
    if fmt in _WHOLE:
        _check_codes(fmt, values)
        q = _columns(values, wanted["q"].shape) if fmt == "ternary_columns" else triples.packed(values)
        return {"q": q, "d": np.asarray(d, np.float32)}
    packed: dict[str, Array] = {suffix: np.empty(part.shape, part.dtype) for suffix, part in wanted.items()}
    width = k if fmt == "f32" else wanted[payload].shape[1] * GROUP
    for start, stop in _row_blocks(len(packed[payload]), width):
        packed[payload][start:stop] = _interleave(fmt, _padded(values, start, stop, width, kind.zero))
        for suffix, given in beside.items():
            if given is not None and fmt != "ternary":
                rows = _padded(given, start, stop, given.shape[1], 0)
                target = packed[suffix][start:stop]
                target[...] = np.moveaxis(rows.reshape(stop - start, ROWS, *target.shape[1:-1]), 1, -1)
    if fmt == "ternary":
        packed["d"][...] = d
    return packed


def _plain_shape(suffix: str, stored: tuple[int, ...], n: int) -> tuple[int, ...]:
    """The shape of scales, minima or factors in plain row order."""
    return stored if len(stored) == 1 else (n, int(np.prod(stored[1:-1])))


def unpack(fmt: str, tensors: Mapping[str, Array], n: int, k: int) -> Unpacked:
    """Undo `pack` for an n x k matrix: exactly the values, scales, minima and factors that were packed."""
    payload, blocks = _checked(fmt, tensors, n, k)
    if fmt in _WHOLE:
        return Unpacked(_whole(fmt, payload)[:n, :k], tensors["d"].copy())
    values: Array = np.empty((n, k), payload.dtype)
    beside: dict[str, Array] = {}
    for suffix in ("d", "m", "s"):
        if suffix in _FORMATS[fmt].parts:
            stored = tensors[suffix]
            beside[suffix] = np.empty(_plain_shape(suffix, stored.shape, n), stored.dtype)
    for start, stop in blocks:
        first, last = start * ROWS, min(n, stop * ROWS)
        values[first:last] = _deinterleave(fmt, payload[start:stop])[: last - first, :k]
        for suffix, plain in beside.items():
            if plain.ndim == 2:
                plain[first:last] = _row_scales(tensors[suffix][start:stop])[: last - first]
    if fmt == "ternary":
        beside["d"][...] = tensors["d"]
    return Unpacked(values, **beside)


def dequantise(fmt: str, tensors: Mapping[str, Array], n: int, k: int) -> NDArray[np.float32]:
    """The n x k matrix as float32 [N, K], computed in float32 as the table at the top of this module says."""
    payload, blocks = _checked(fmt, tensors, n, k)
    if fmt in _WHOLE:
        return (_whole(fmt, payload)[:n, :k].astype(np.float32) - 1) * tensors["d"]
    dense = np.empty((n, k), np.float32)
    for start, stop in blocks:
        first, last = start * ROWS, min(n, stop * ROWS)
        rows = _deinterleave(fmt, payload[start:stop]).astype(np.float32)
        if _FORMATS[fmt].zero:
            rows -= _FORMATS[fmt].zero
        if fmt == "ternary":
            rows *= tensors["d"]
        elif fmt == "q6k":
            rows *= np.repeat(_row_scales(tensors["s"][start:stop]).astype(np.float32), GROUP // 2, axis=1)
            scale = np.repeat(_row_scales(tensors["d"][start:stop]).astype(np.float32), GROUP * SUPER_GROUPS, axis=1)
            rows *= scale[:, : rows.shape[1]]
        elif fmt != "f32":
            grouped = rows.reshape(len(rows), -1, GROUP)
            grouped *= _row_scales(tensors["d"][start:stop]).astype(np.float32)[:, :, None]
            if fmt == "q4m":
                grouped += _row_scales(tensors["m"][start:stop]).astype(np.float32)[:, :, None]
        dense[first:last] = rows[: last - first, :k]
    return dense


def _checked(fmt: str, tensors: Mapping[str, Array], n: int, k: int) -> tuple[Array, Iterator[tuple[int, int]]]:
    wanted = parts(fmt, n, k)
    for suffix, part in wanted.items():
        got = tensors[suffix]
        if got.dtype != part.dtype or got.shape != part.shape:
            raise ValueError(f"{suffix} is {got.dtype} {got.shape}, expected {part.dtype} {part.shape}")
    payload = tensors["w" if fmt == "f32" else "q"]
    return payload, _row_blocks(len(payload), -(-k // GROUP) * GROUP)


def _row_blocks(blocks: int, width: int) -> Iterator[tuple[int, int]]:
    step = max(1, _CHUNK_ELEMENTS // (ROWS * max(1, width)))
    for start in range(0, blocks, step):
        yield start, min(blocks, start + step)


def _padded(matrix: Array, start: int, stop: int, width: int, fill: int) -> Array:
    rows = matrix[start * ROWS : stop * ROWS]
    if rows.shape == ((stop - start) * ROWS, width):
        return rows
    padded = np.full(((stop - start) * ROWS, width), fill, matrix.dtype)
    padded[: rows.shape[0], : rows.shape[1]] = rows
    return padded


def _interleave(fmt: str, rows: Array) -> Array:
    blocks = len(rows) // ROWS
    if fmt == "f32":
        return rows.reshape(blocks, ROWS, -1).transpose(0, 2, 1)
    if fmt == "q8":
        return rows.reshape(blocks, ROWS, -1, 8, 4).transpose(0, 2, 3, 1, 4)
    _check_codes(fmt, rows)
    if fmt == "ternary":
        return _interleaved_pairs(rows)
    if fmt == "q6k":
        packed = np.empty((blocks, rows.shape[1] // GROUP, 6, ROWS, 4), np.uint8)
        packed[:, :, LOW_LINES] = _interleaved_nibbles(rows & 15)
        packed[:, :, HIGH_LINES] = _interleaved_pairs(rows >> 4)
        return packed
    return _interleaved_nibbles(rows)


def _check_codes(fmt: str, rows: Array) -> None:
    if rows.size and rows.max() > _FORMATS[fmt].largest:
        raise ValueError(f"{fmt} needs codes 0..{_FORMATS[fmt].largest}, got {rows.max()}")


def _columns(codes: Array, shape: tuple[int, ...]) -> Array:
    """Ternary codes [N, K], column by column."""
    n, k = codes.shape
    padded = np.full((shape[0], shape[1] * COLUMN_ROWS), _FORMATS["ternary_columns"].zero, np.uint8)
    padded[:k, :n] = codes.T
    pairs = padded.reshape(*shape[:2], 4, 4, 4, 4)  # k, s, p, u, a, r
    packed: Array = pairs[:, :, 0] | (pairs[:, :, 1] << 2) | (pairs[:, :, 2] << 4) | (pairs[:, :, 3] << 6)
    return np.ascontiguousarray(packed.swapaxes(2, 3))


def _whole(fmt: str, q: Array) -> Array:
    return _from_columns(q) if fmt == "ternary_columns" else triples.unpacked(q)


def _from_columns(q: Array) -> Array:
    """[256 Sn, 32 G] codes."""
    pairs = np.stack([q >> shift & 3 for shift in (0, 2, 4, 6)], axis=2)  # k, s, p, a, u, r
    return pairs.swapaxes(3, 4).reshape(len(q), -1).T


def _interleaved_nibbles(rows: Array) -> Array:
    """[blocks, G, 4, 16, 4]"""
    halves = rows.reshape(len(rows) // ROWS, ROWS, -1, 4, 2, 4)
    packed: Array = halves[..., 0, :] | (halves[..., 1, :] << 4)
    return packed.transpose(0, 2, 3, 1, 4)


def _interleaved_pairs(rows: Array) -> Array:
    """[blocks, G, 2, 16, 4]"""
    pairs = rows.reshape(len(rows) // ROWS, ROWS, -1, 2, 4, 4)
    packed: Array = pairs[..., 0, :] | (pairs[..., 1, :] << 2) | (pairs[..., 2, :] << 4) | (pairs[..., 3, :] << 6)
    return packed.transpose(0, 2, 3, 1, 4)


def _deinterleave(fmt: str, blocks: Array) -> Array:
    rows = len(blocks) * ROWS
    if fmt == "f32":
        return blocks.transpose(0, 2, 1).reshape(rows, -1)
    plain = blocks.transpose(0, 3, 1, 2, 4)
    if fmt == "q8":
        return plain.reshape(rows, -1)
    if fmt == "ternary":
        return _plain_pairs(plain).reshape(rows, -1)
    nibbles = plain[:, :, :, LOW_LINES] if fmt == "q6k" else plain
    low = np.stack((nibbles & 15, nibbles >> 4), axis=-2).reshape(rows, -1)
    if fmt == "q6k":
        low |= _plain_pairs(plain[:, :, :, HIGH_LINES]).reshape(rows, -1) << 4
    return low


def _plain_pairs(plain: Array) -> Array:
    """[..., 4] bytes -> [..., 4, 4] numbers 0..3."""
    return np.stack([plain >> shift & 3 for shift in (0, 2, 4, 6)], axis=-2)


def _row_scales(blocks: Array) -> Array:
    return np.moveaxis(blocks, -1, 1).reshape(len(blocks) * ROWS, -1)
