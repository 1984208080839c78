"""Quantises rows of weights in groups of 32 columns, and decides which format each matrix gets.

Formats (see edgerun.package.layout): `q8` int8 with a scale; `q6k` 6 bits with two levels of scales; `q4m` 4 bits with
a scale and a minimum; `q4` only as found in a GGUF file; `ternary` as a model was trained; `f32`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from edgerun.errors import OptionError
from edgerun.package.layout import SUPER_GROUPS

from .checkpoint import GROUP, QuantisedBlocks, TensorInfo

QUANTS = ("auto", "q4", "q6", "q8", "f32")
_KEPT = {"Q4_0": "q4", "Q4_1": "q4m", "Q6_K": "q6k", "Q8_0": "q8"}
_FLOATS = ("F64", "F32", "F16", "BF16")
_FEW_BITS = 6.0  # Q5_1, the widest of the 5-bit formats, scales included
_STEPS = tuple(15 + shift for shift in (-1.5, -1.0, -0.6, -0.3, 0.0, 0.4))
"""Numbers of steps tried between a group's least and greatest value: fewer clip less, more clip the outliers."""
_BLOCK = 4096  # groups whose temporaries stay in the cache
_HALF_MAX = 65504.0
_LEAST = 1e-30  # narrower groups are one value

Floats = npt.NDArray[np.float32]
Halves = npt.NDArray[np.float16]


def choose_format(source: TensorInfo, *, linear: bool, quant: str, ternary: bool = False) -> str:
    """The package format of one matrix that is not ternary itself.

    auto: Q4_0, Q4_1, Q6_K, Q8_0 stay; other GGUF formats of up to 5 bits become q4m; all else q8, or q6k in a model
    with ternary layers (`ternary`), whose embedding would outweigh them.
    q4: linear layers in 4 bits (Q4_0 and Q4_1 stay), embedding and output head as under auto, but nothing above q8.
    OptionError if `quant` is none of QUANTS.
    """
    if quant not in QUANTS:
        raise OptionError(f"quantisation {quant!r} is unknown; choose one of {', '.join(QUANTS)}")
    if quant in ("q6", "q8", "f32"):
        return "q6k" if quant == "q6" else quant
    kept = _KEPT.get(source.format)
    wide = "q6k" if ternary else "q8"
    if quant == "q4":
        return kept if kept in ("q4", "q4m") else "q4m" if linear else kept or wide
    if kept:
        return kept
    return "q4m" if source.format not in _FLOATS and source.bits <= _FEW_BITS else wide


def quantise(kind: str, rows: Floats) -> QuantisedBlocks:
    """float32 [rows, columns] -> `q8`, `q6k` or `q4m` blocks. The last group of a row may be short."""
    if kind == "q6k":
        return _q6k(rows)
    count, columns = rows.shape
    short = -columns % GROUP
    if short:
        # Repeating the last column leaves the range of the group what it is.
        rows = np.concatenate([rows, np.repeat(rows[:, -1:], short, axis=1)], axis=1)
    groups = rows.reshape(-1, GROUP)
    shape = count, (columns + short) // GROUP
    codes = np.empty(groups.shape, np.int8 if kind == "q8" else np.uint8)
    d, m = np.empty(len(groups), np.float16), np.empty(len(groups), np.float16)
    for start in range(0, len(groups), _BLOCK):
        part = slice(start, start + _BLOCK)
        if kind == "q8":
            codes[part], d[part] = _q8(groups[part])
        else:
            codes[part], d[part], m[part] = _q4m(groups[part])
    codes = codes.reshape(count, columns + short)[:, :columns]
    return QuantisedBlocks(kind, codes, d.reshape(shape), m.reshape(shape) if kind == "q4m" else None)


def _q8(groups: Floats) -> tuple[npt.NDArray[np.int8], Halves]:
    """The scale takes the greatest magnitude to 127; codes are rounded for the scale as stored."""
    d = _half(np.abs(groups).max(axis=1) / np.float32(127))
    codes = np.rint(groups * _inverse(d)[:, None])
    return np.clip(codes, -127, 127).astype(np.int8), d


def _q6k(rows: Floats) -> QuantisedBlocks:
    """16 columns share a step that takes their greatest magnitude to -32; the steps of 256 columns are int8 multiples
    of one scale. Codes are rounded for the steps as stored."""
    count, columns = rows.shape
    n_groups = -(-columns // GROUP)
    whole = np.zeros((count, -(-n_groups // SUPER_GROUPS) * SUPER_GROUPS * GROUP), np.float32)
    whole[:, :columns] = rows
    parts = whole.reshape(count, -1, 16, 16)  # scales of 256 columns, factors of 16
    largest, least = parts.max(axis=3), parts.min(axis=3)
    steps = np.where(largest > -least, largest, least) / np.float32(-32)
    d = _half(np.abs(steps).max(axis=2) / np.float32(127))
    s = np.clip(np.rint(steps * _inverse(d)[:, :, None]), -127, 127)
    stored = s * d.astype(np.float32)[:, :, None]
    inverse = np.divide(np.float32(1), stored, out=np.zeros_like(stored), where=stored != 0)
    codes = parts * inverse[:, :, :, None]
    np.rint(codes, out=codes)
    np.clip(codes, -32, 31, out=codes)
    codes += 32
    flat = codes.reshape(count, -1)[:, :columns].astype(np.uint8)
    factors = s.astype(np.int8).reshape(count, -1)[:, : 2 * n_groups]
    return QuantisedBlocks("q6k", flat, d, s=factors)


def _q4m(groups: Floats) -> tuple[npt.NDArray[np.uint8], Halves, Halves]:
    """For several step sizes: round, fit scale and minimum to the codes by least squares, keep the best."""
    low = groups.min(axis=1)
    width = groups.max(axis=1) - low
    best_d, best_m = _half(width / np.float32(15)), _half(low)
    best = _error(groups, best_d, best_m)
    shifted = groups - low[:, None]
    total = groups.sum(axis=1)
    for steps in _STEPS:
        inverse = np.divide(np.float32(steps), width, out=np.zeros_like(width), where=width > _LEAST)
        codes = np.clip(np.rint(shifted * inverse[:, None]), 0, 15)
        sum_q = codes.sum(axis=1)
        sum_qq = np.einsum("gk,gk->g", codes, codes)
        sum_qx = np.einsum("gk,gk->g", codes, groups)
        determinant = GROUP * sum_qq - sum_q * sum_q
        fitted = determinant > 0
        divisor = np.where(fitted, determinant, 1)
        d = _half(np.where(fitted, (GROUP * sum_qx - sum_q * total) / divisor, 0))
        m = _half(np.where(fitted, (sum_qq * total - sum_q * sum_qx) / divisor, low))
        error = _error(groups, d, m)
        better = error < best
        best = np.where(better, error, best)
        best_d, best_m = np.where(better, d, best_d), np.where(better, m, best_m)
    return _codes(groups, best_d, best_m).astype(np.uint8), best_d, best_m


def _codes(groups: Floats, d: Halves, m: Halves) -> Floats:
    codes: Floats = (groups - m.astype(np.float32)[:, None]) * _inverse(d)[:, None]
    np.rint(codes, out=codes)
    np.clip(codes, 0, 15, out=codes)
    return codes


def _error(groups: Floats, d: Halves, m: Halves) -> Floats:
    """Sum of squared errors of each group with the best codes for d and m as stored."""
    values = _codes(groups, d, m)
    values *= d.astype(np.float32)[:, None]
    values += m.astype(np.float32)[:, None]
    values -= groups
    errors: Floats = np.einsum("gk,gk->g", values, values)
    return errors


def _half(values: Floats) -> Halves:
    return np.clip(values, -_HALF_MAX, _HALF_MAX).astype(np.float16)


def _inverse(d: Halves) -> Floats:
    scale = d.astype(np.float32)
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=scale != 0)
