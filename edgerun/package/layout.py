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
f32     w float32 [Nb, K, 16]             (b, k, r): row b*16+r, column k                     w
======  ================================  ==================================================  ====================

Padding rows and columns hold the value 0 (q4: nibble 8; all others: 0; scales and minima: 0).
Everything here works on blocks of rows, so that temporaries stay at a few MiB whatever the matrix.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun_kernels.record import GROUP as GROUP  # the kernels' own numbers: a package is laid out for them
from edgerun_kernels.record import ROWS as ROWS

FORMATS = ("q4", "q4m", "q8", "f32")

Array = NDArray[Any]
_CHUNK_ELEMENTS = 1 << 20


class Part(NamedTuple):
    """What one tensor of a stored matrix must be."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Unpacked(NamedTuple):
    """A matrix in plain row order: values [N, K] (uint8 nibbles, int8 or float32), d and m float16 [N, G] or None."""

    values: Array
    d: Array | None
    m: Array | None


def parts(fmt: str, n: int, k: int) -> dict[str, Part]:
    """The tensors of an n x k matrix stored as `fmt`: "q", "d", "m", "w" -> Part, in the order of operator inputs."""
    blocks, groups = -(-n // ROWS), -(-k // GROUP)
    scale = Part(np.dtype("<f2"), (blocks, groups, ROWS))
    nibbles = Part(np.dtype("u1"), (blocks, groups, 4, ROWS, 4))
    if fmt == "q4":
        return {"q": nibbles, "d": scale}
    if fmt == "q4m":
        return {"q": nibbles, "d": scale, "m": scale}
    if fmt == "q8":
        return {"q": Part(np.dtype("i1"), (blocks, groups, 8, ROWS, 4)), "d": scale}
    if fmt == "f32":
        return {"w": Part(np.dtype("<f4"), (blocks, k, ROWS))}
    raise ValueError(f"unknown weight format {fmt!r}, not one of {', '.join(FORMATS)}")


def pack(fmt: str, values: Array, d: Array | None = None, m: Array | None = None) -> dict[str, Array]:
    """Interleave a matrix.

    values: [N, K]; uint8 nibbles 0..15 (q4, q4m), int8 (q8) or float32 (f32).  d: scales [N, G], q4, q4m and q8.
    m: minima [N, G], q4m only. Scales and minima are stored as float16.
    Returns the tensors that `parts(fmt, N, K)` describes. Raises ValueError if an argument does not fit the format.
    """
    n, k = values.shape
    wanted = parts(fmt, n, k)
    scales = {"d": d, "m": m}
    for suffix, given in scales.items():
        if (given is not None) != (suffix in wanted):
            raise ValueError(f"{fmt} {'needs' if given is None else 'has no'} {suffix}")
        if given is not None and given.shape != (n, -(-k // GROUP)):
            raise ValueError(f"{suffix} has shape {given.shape}, expected {(n, -(-k // GROUP))}")
    payload = "w" if fmt == "f32" else "q"
    if values.dtype != wanted[payload].dtype:
        raise ValueError(f"{fmt} needs {wanted[payload].dtype} values, got {values.dtype}")
    packed: dict[str, Array] = {suffix: np.empty(part.shape, part.dtype) for suffix, part in wanted.items()}
    width = k if fmt == "f32" else wanted[payload].shape[1] * GROUP
    for start, stop in _row_blocks(len(packed[payload]), width):
        packed[payload][start:stop] = _interleave(fmt, _padded(values, start, stop, width, 8 if fmt == "q4" else 0))
        for suffix, given in scales.items():
            if given is not None:
                rows = _padded(given, start, stop, given.shape[1], 0)
                packed[suffix][start:stop] = rows.reshape(stop - start, ROWS, -1).transpose(0, 2, 1)
    return packed


def unpack(fmt: str, tensors: Mapping[str, Array], n: int, k: int) -> Unpacked:
    """Undo `pack` for an n x k matrix: exactly the values, d and m that were packed (scales as float16)."""
    payload, blocks = _checked(fmt, tensors, n, k)
    groups = -(-k // GROUP)
    values: Array = np.empty((n, k), payload.dtype)
    scales = {s: np.empty((n, groups), np.float16) for s in ("d", "m") if s in tensors and fmt != "f32"}
    for start, stop in blocks:
        first, last = start * ROWS, min(n, stop * ROWS)
        values[first:last] = _deinterleave(fmt, payload[start:stop])[: last - first, :k]
        for suffix, plain in scales.items():
            plain[first:last] = _row_scales(tensors[suffix][start:stop])[: last - first]
    return Unpacked(values, scales.get("d"), scales.get("m"))


def dequantise(fmt: str, tensors: Mapping[str, Array], n: int, k: int) -> NDArray[np.float32]:
    """The n x k matrix as float32 [N, K], computed in float32 as the table at the top of this module says."""
    payload, blocks = _checked(fmt, tensors, n, k)
    dense = np.empty((n, k), np.float32)
    for start, stop in blocks:
        first, last = start * ROWS, min(n, stop * ROWS)
        rows = _deinterleave(fmt, payload[start:stop]).astype(np.float32)
        if fmt != "f32":
            grouped = rows.reshape(len(rows), -1, GROUP)
            if fmt == "q4":
                grouped -= 8
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
    if rows.size and rows.max() > 15:
        raise ValueError(f"{fmt} needs nibbles 0..15, got {rows.max()}")
    halves = rows.reshape(blocks, ROWS, -1, 4, 2, 4)
    packed: Array = halves[..., 0, :] | (halves[..., 1, :] << 4)
    return packed.transpose(0, 2, 3, 1, 4)


def _deinterleave(fmt: str, blocks: Array) -> Array:
    rows = len(blocks) * ROWS
    if fmt == "f32":
        return blocks.transpose(0, 2, 1).reshape(rows, -1)
    if fmt == "q8":
        return blocks.transpose(0, 3, 1, 2, 4).reshape(rows, -1)
    plain = blocks.transpose(0, 3, 1, 2, 4)
    return np.stack((plain & 15, plain >> 4), axis=-2).reshape(rows, -1)


def _row_scales(blocks: Array) -> Array:
    return blocks.transpose(0, 2, 1).reshape(len(blocks) * ROWS, -1)
