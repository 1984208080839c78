"""Attention over the paged cache: decode in parts, prefill in tiles, what they write, at every number of threads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun_kernels import reference
from edgerun_kernels.record import CHUNK, MAX_CHUNKS, PAGE

from .harness import EPS, Array, Memory, every_isa, examples, loaded, same_bits, stride, team, within


class Case(NamedTuple):
    """Random rows of q, k, v that stand at ``position`` and on, and what the cache held before."""

    q: Array  # [rows, n_heads, dim]
    k: Array  # [rows, n_kv_heads, dim]
    v: Array
    old_keys: Array  # [n_kv_heads, position, dim], rotated
    old_values: Array
    position: int

    @classmethod
    def make(cls, rows: int, position: int, n_kv_heads: int, group: int, dim: int, seed: int, size: float = 1) -> Case:
        rng = np.random.default_rng(seed)

        def draw(*shape: int) -> Array:
            return rng.standard_normal(shape).astype(np.float32) * np.float32(size)

        old = draw(n_kv_heads, position, dim), draw(n_kv_heads, position, dim)
        new = draw(rows, n_kv_heads * group, dim), draw(rows, n_kv_heads, dim), draw(rows, n_kv_heads, dim)
        return cls(*new, *(part.astype(np.float16).astype(np.float32) for part in old), position)


def angles(n: int, dim: int) -> tuple[Array, Array]:
    angle = (np.arange(n)[:, None] / 50.0 ** (np.arange(dim // 2) / dim)).astype(np.float32)
    return np.cos(angle), np.sin(angle)


def wanted(case: Case, scale: float, dtype: type) -> tuple[Array, Array, Array]:
    """The output, and all keys and values [n_kv_heads, positions, dim] as the cache then holds them."""
    end = case.position + len(case.q)
    cos, sin = (table[case.position : end] for table in angles(end, case.q.shape[2]))
    new_keys = reference.rope(case.k, cos, sin).transpose(1, 0, 2)
    keys = np.concatenate([case.old_keys, new_keys], 1).astype(dtype)
    values = np.concatenate([case.old_values, case.v.transpose(1, 0, 2)], 1).astype(dtype)
    q = reference.rope(case.q, cos, sin, scale)
    return reference.attention(q, keys, values, case.position), keys, values


def attend(
    isa: str, case: Case, scale: float, dtype: type, n_threads: int, chunk: int = CHUNK
) -> tuple[Array, list[Array]]:
    """Runs the attention op and, for one row, the gather op; the output [rows, n_heads, dim] and the pages."""
    rows, n_heads, dim = case.q.shape
    n_kv_heads = case.k.shape[1]
    end = case.position + rows
    padded = -(-dim // 16) * 16
    name = "attention_f16" if dtype is np.float16 else "attention_f32"
    with Memory() as memory:
        pages = []
        for start in range(0, end, PAGE):
            keys = np.full((n_kv_heads, PAGE, dim), np.nan, dtype)
            values = keys.copy()
            held = max(0, min(PAGE, case.position - start))
            keys[:, :held] = case.old_keys[:, start : start + held]
            values[:, :held] = case.old_values[:, start : start + held]
            pages.append(memory.hold(reference.pack_page(keys, values)))
        table = np.array([page.ctypes.data for page in pages], np.int64)
        cos, sin = (memory.hold(part) for part in angles(end, dim))
        q = memory.hold(case.q.reshape(rows, -1), gap=64)
        k, v = (memory.hold(part.reshape(rows, -1), gap=64) for part in (case.k, case.v))
        private = 64 * (-(-(32 * padded + 96 + max(16 * CHUNK, 8 * padded)) // 64))
        y = memory.room((max(rows, n_threads), n_heads * dim), np.float32, gap=64)
        op_fields = {
            "Y": y, "Y_STRIDE": stride(y), "Y_PRIVATE": stride(y), "Q": q, "KEY": k, "VALUE": v, "Q_STRIDE": stride(q),
            "KV_STRIDE": stride(k), "N_HEADS": n_heads, "N_KV_HEADS": n_kv_heads, "HEAD_DIM": dim,
            "SCALE": float(scale),
            "PARTIALS": memory.room((n_heads * MAX_CHUNKS, padded + 16), np.float32),
            "SCRATCH": memory.room((n_threads, private), np.uint8), "SCRATCH_PRIVATE": private,
        }  # fmt: skip
        op = memory.op(**op_fields)
        memory._kept.append(table)
        run = memory.run(N_ROWS=rows, POSITION=case.position, PAGES=table, COS=cos, SIN=sin, CHUNK=chunk)
        both = np.zeros((2, 32), np.int64)
        both[:] = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_int64 * 32).from_address(op))
        both[0, 0] = 11 if dtype is np.float16 else 12
        both[1, 0] = 13
        both[0, 1] = 1
        assert loaded(isa).op(name)
        team(isa, n_threads).run(int(both.ctypes.data), 2, run)
        out = y[:rows].copy() if rows > 1 else y[: n_threads if rows == 1 else rows].copy()
        if rows == 1:
            for copy in out[1:]:
                same_bits(copy, out[0])  # every thread's own copy
            out = out[:1]
        return out.reshape(rows, n_heads, dim), [page.copy() for page in pages]


@every_isa
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@examples(14)
@given(
    rows=st.sampled_from([1, 1, 2, 3, 7, 20]),
    position=st.sampled_from([0, 1, 15, 16, 63, 64, 100, 250, 255, 256, 300, 515]),
    heads=st.sampled_from([(1, 1), (3, 3), (2, 4), (1, 9), (5, 1), (1, 5)]),
    dim=st.sampled_from([2, 6, 16, 20, 64, 72, 136]),
    seed=st.integers(0, 2**31),
)
def test_attention(
    isa: str, dtype: type, rows: int, position: int, heads: tuple[int, int], dim: int, seed: int
) -> None:
    case = Case.make(rows, position, *heads, dim, seed)
    scale = dim**-0.5
    expected, keys, values = wanted(case, scale, dtype)
    got, pages = attend(isa, case, scale, dtype, 1)
    size = np.abs(values.astype(np.float64)).max()
    # A key may round to the next float16: then its score moves by that much.
    bound = (1e-3 if dtype is np.float16 else 0) * (1 + np.sqrt(dim) * 1e-1) + 600 * EPS * (1 + np.sqrt(dim))
    within(got, expected, bound * size)
    for n_threads in (2, 3):
        again, again_pages = attend(isa, case, scale, dtype, n_threads)
        same_bits(again, got)
        for page, other in zip(pages, again_pages, strict=True):
            same_bits(page, other)
    end = position + rows
    for index, page in enumerate(pages):
        held = min(PAGE, end - index * PAGE)
        page_keys, page_values = reference.unpack_page(page, dim)
        part = slice(index * PAGE, index * PAGE + held)
        same_bits(page_values[:, :held], values[:, part])
        step = 2.0**-10 if dtype is np.float16 else 4 * EPS
        within(page_keys[:, :held], keys[:, part], step * np.abs(keys[:, part].astype(np.float64)) + 1e-6)
        assert np.isnan(page_keys[:, held:].astype(np.float32)).all(), "later positions must not be written"


@every_isa
def test_longer_parts_give_the_same_attention(isa: str) -> None:
    case = Case.make(1, 700, 2, 3, 64, 5)
    expected, _, _ = wanted(case, 0.125, np.float32)
    for chunk in (CHUNK, 2 * CHUNK, 4 * CHUNK, 16 * CHUNK):
        within(attend(isa, case, 0.125, np.float32, 2, chunk)[0], expected, 1e-4)


@every_isa
@pytest.mark.parametrize("rows", [1, 5])
def test_large_scores_do_not_overflow(isa: str, rows: int) -> None:
    """Scores of some 10,000: softmax takes the largest alone."""
    case = Case.make(rows, 40, 1, 4, 32, 9, size=40)
    expected, _, _ = wanted(case, 1.0, np.float32)
    got, _ = attend(isa, case, 1.0, np.float32, 2)
    assert np.isfinite(got).all()
    within(got, expected, 0.3)
