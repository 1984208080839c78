"""Attention over the paged cache: decode in parts, prefill in tiles, what they write, at every number of threads."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun_kernels import reference
from edgerun_kernels.build.load import Kernels
from edgerun_kernels.record import (
    CHUNK,
    GROUP,
    MAX_CHUNKS,
    PAGE,
    attention_scratch_bytes,
    kv_head_bytes,
    partials_bytes,
)
from edgerun_kernels.registry import Op

from .harness import EPS, Array, Memory, every_isa, examples, same_bits, stride, tape, team, within

every_cache = pytest.mark.parametrize("cache", reference.CACHES)
OPS = {"f16": Op.ATTENTION_F16, "f32": Op.ATTENTION_F32, "q8": Op.ATTENTION_Q8}


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
        return cls(*new, *old, position)


class Norms(NamedTuple):
    """Weights [dim] of the norms of queries and keys. changed: whether a variant has them, and the base others."""

    q: Array
    k: Array
    epsilon: float
    changed: bool = False

    def of(self, case: Case) -> Case:
        """The case as it is compared, before RoPE."""

        def normed(x: Array, w: Array) -> Array:
            return reference.rms_norm(x.reshape(-1, len(w)), w, self.epsilon).reshape(x.shape)

        return case._replace(q=normed(case.q, self.q), k=normed(case.k, self.k))


class Wanted(NamedTuple):
    """The output [rows, n_heads, dim], how far the kernel may be from it, and the pages' bytes before and after."""

    output: Array
    bound: Array  # [rows, n_heads, 1]
    before: list[Array]
    after: list[Array]


def angles(n: int, dim: int) -> tuple[Array, Array]:
    angle = (np.arange(n)[:, None] / 50.0 ** (np.arange(dim // 2) / dim)).astype(np.float32)
    return np.cos(angle), np.sin(angle)


def query_steps(q: Array) -> Array:
    """How far apart the 16-bit numbers are that stand for each of q [rows, n_heads, dim]."""
    scales = reference.quantize(q.reshape(-1, q.shape[2]), 0.0).second_scales()
    return np.repeat(scales, GROUP, 1)[:, : q.shape[2]].reshape(q.shape).astype(np.float64)


def pages(cache: str, keys: Array, values: Array, end: int) -> list[Array]:
    """The pages that hold ``end`` positions, of which as many are written as there are keys."""
    parts = [slice(start, start + PAGE) for start in range(0, end, PAGE)]
    return [reference.pack_page(cache, keys[:, part], values[:, part]) for part in parts]


def wanted(cache: str, case: Case, scale: float, written: list[Array] | None = None) -> Wanted:
    """Exact attention over what the cache stands for; ``written``: as it is there, of keys with norms, whose roundings
    are not these.

    A score may be off by d: its sum's roundings and, with q8, half a step of the query's 16-bit integers for each
    feature. Then each weight of the softmax is off by a factor of exp(2 d) at most, beside its own roundings.
    """
    end, dim = case.position + len(case.q), case.q.shape[2]
    cos, sin = (table[case.position :] for table in angles(end, dim))
    keys = np.concatenate([case.old_keys, reference.rope(case.k, cos, sin).transpose(1, 0, 2)], 1)
    values = np.concatenate([case.old_values, case.v.transpose(1, 0, 2)], 1)
    after = pages(cache, keys, values, end)
    both = zip(*(reference.unpack_page(cache, page, dim) for page in written or after), strict=True)
    stored_keys, stored_values = (np.concatenate(part, 1)[:, :end] for part in both)
    q = reference.rope(case.q, cos, sin, scale)
    output = reference.attention(q, stored_keys, stored_values, case.position)
    heads = (len(q), len(stored_keys), -1, dim)
    sums = np.einsum("rhgd,htd->rhgt", np.abs(q).reshape(heads), np.abs(stored_keys), dtype=np.float64).max(3)
    d = (dim + 8) * (1 if written is None else 2) * EPS * sums
    if cache == "q8":
        d += np.einsum("rhgd,htd->rhgt", query_steps(q).reshape(heads), np.abs(stored_keys)).max(3) * 0.505
    bound = (np.expm1(2 * d) + (2 * end + 40) * EPS) * np.abs(stored_values).max()
    before = pages(cache, case.old_keys, case.old_values, end)
    return Wanted(output, bound.reshape(output.shape[:2])[:, :, None], before, after)


def attend(
    isa: str | Kernels,
    cache: str,
    case: Case,
    scale: float,
    before: list[Array],
    n_threads: int,
    norms: Norms | None = None,
) -> tuple[Array, list[Array]]:
    """Runs the attention op and the gather op; the output [rows, n_heads, dim] and the pages."""
    rows, n_heads, dim = case.q.shape
    with Memory() as memory:
        held = [memory.hold(page) for page in before]
        cos, sin = (memory.hold(part) for part in angles(case.position + rows, dim))
        q, k, v = (memory.hold(part.reshape(rows, -1), gap=64) for part in (case.q, case.k, case.v))
        y = memory.room((max(rows, n_threads), n_heads * dim), np.float32, gap=64)
        scratch_bytes = attention_scratch_bytes(dim)
        scratch = memory.room((n_threads, scratch_bytes), np.uint8, gap=64 + -scratch_bytes % 64)
        fields = {
            "Y": y, "Y_STRIDE": stride(y), "Y_PRIVATE": stride(y), "Q": q, "KEY": k, "VALUE": v, "Q_STRIDE": stride(q),
            "KV_STRIDE": stride(k), "N_HEADS": n_heads, "N_KV_HEADS": case.k.shape[1], "HEAD_DIM": dim,
            "KV_HEAD_BYTES": kv_head_bytes(cache, dim), "SCALE": float(scale),
            "PARTIALS": memory.room((partials_bytes(n_heads, dim, rows) // 4,), np.float32),
            "SCRATCH": scratch, "SCRATCH_PRIVATE": stride(scratch),
        }  # fmt: skip
        variant = memory.hold(np.zeros(2, np.int64))
        if norms is not None:
            q_norm, k_norm = memory.hold(norms.q), memory.hold(norms.k)
            if norms.changed:
                variant[:] = q_norm.ctypes.data, k_norm.ctypes.data
                q_norm, k_norm = memory.hold(norms.k + 1), memory.hold(norms.q - 1)
            fields |= {"Q_NORM": q_norm, "K_NORM": k_norm, "Q_SITE": 0, "K_SITE": 1, "EPSILON": norms.epsilon}
        ops = tape(memory.op(OPS[cache], BARRIER=1, **fields), memory.op(Op.GATHER_ATTENTION, **fields))
        table = memory.hold(np.array([page.ctypes.data for page in held], np.int64))
        run = memory.run(N_ROWS=rows, POSITION=case.position, PAGES=table, COS=cos, SIN=sin, VARIANT=variant)
        team(isa, n_threads).run(int(ops.ctypes.data), len(ops), run)
        if rows == 1:
            for copy in y[1:n_threads]:
                same_bits(copy, y[0])  # every thread's own copy
        return y[:rows].reshape(rows, n_heads, dim).copy(), [page.copy() for page in held]


@every_isa
@every_cache
@examples(100)
@given(
    rows=st.sampled_from([1, 1, 1, 2, 3, 7, 9, 20]),
    position=st.sampled_from([0, 1, 15, 16, 31, 32, 63, 100, 127, 128, 129, 250, 255, 256, 257, 383, 384, 515]),
    heads=st.sampled_from([(1, 1), (3, 1), (1, 2), (2, 2), (2, 3), (1, 4), (1, 5), (2, 5), (1, 8), (1, 9)]),
    dim=st.sampled_from([2, 6, 16, 20, 32, 34, 64, 72, 80, 128, 136]),
    size=st.sampled_from([1.0, 1.0, 0.0, 1e-2, 1e-6, 3.0]),
    seed=st.integers(0, 2**31),
)
def test_attention(
    isa: str, cache: str, rows: int, position: int, heads: tuple[int, int], dim: int, size: float, seed: int
) -> None:
    """The cache bit for bit, later positions untouched; the output within its bound; the same at every thread count."""
    case = Case.make(rows, position, *heads, dim, seed, size)
    scale = dim**-0.5
    expected = wanted(cache, case, scale)
    got, after = attend(isa, cache, case, scale, expected.before, 1)
    for page, wanted_page in zip(after, expected.after, strict=True):
        same_bits(page, wanted_page)
    within(got, expected.output, expected.bound)
    for n_threads in (2, 3):
        again, again_after = attend(isa, cache, case, scale, expected.before, n_threads)
        same_bits(again, got)
        for page, other in zip(again_after, after, strict=True):
            same_bits(page, other)


@every_isa
@every_cache
@examples(40)
@given(
    rows=st.sampled_from([1, 1, 2, 7, 20]),
    position=st.sampled_from([0, 1, 31, 128, 255, 384]),
    heads=st.sampled_from([(1, 1), (3, 1), (2, 3), (1, 5)]),
    dim=st.sampled_from([2, 6, 16, 20, 64, 72, 128]),
    size=st.sampled_from([1.0, 1.0, 0.0, 1e-6, 30.0]),
    seed=st.integers(0, 2**31),
)
def test_norms_of_heads(
    isa: str, cache: str, rows: int, position: int, heads: tuple[int, int], dim: int, size: float, seed: int
) -> None:
    """Keys as the numpy twin has them, but for roundings, and the output over what the cache holds; the same bits at
    every number of threads, and where a variant has the weights."""
    case = Case.make(rows, position, *heads, dim, seed, size)
    weights = 1 + 0.3 * np.random.default_rng(seed).standard_normal((2, dim)).astype(np.float32)
    norms = Norms(weights[0], weights[1], 1e-5)
    scale = dim**-0.5
    twin = norms.of(case)
    before, twin_after = wanted(cache, twin, scale)[2:]
    got, after = attend(isa, cache, case, scale, before, 1, norms)
    expected = wanted(cache, twin, scale, after)
    within(got, expected.output, expected.bound)
    (keys, values), (twin_keys, twin_values) = (
        (np.concatenate(part, 1)[:, : position + rows] for part in zip(*unpacked, strict=True))
        for unpacked in ([reference.unpack_page(cache, page, dim) for page in held] for held in (after, twin_after))
    )
    same_bits(values, twin_values)
    step = {"f32": 0.0, "f16": 2.0**-10, "q8": 1.1 / 127}[cache]
    within(keys, twin_keys, np.abs(twin_keys).max(2, keepdims=True) * (2 * (dim + 8) * EPS + step) + 2.0**-24)
    for n_threads, changed in ((2, False), (3, True)):
        again, again_after = attend(isa, cache, case, scale, before, n_threads, norms._replace(changed=changed))
        same_bits(again, got)
        for page, other in zip(again_after, after, strict=True):
            same_bits(page, other)


@every_isa
@every_cache
@pytest.mark.parametrize("position", [MAX_CHUNKS * CHUNK - 1, MAX_CHUNKS * CHUNK, 2 * MAX_CHUNKS * CHUNK + 200])
def test_parts_grow_with_the_position(isa: str, cache: str, position: int) -> None:
    """There are MAX_CHUNKS at most, however long the cache is."""
    case = Case.make(1, position, 2, 3, 64, 5)
    expected = wanted(cache, case, 0.125)
    got, _ = attend(isa, cache, case, 0.125, expected.before, 2)
    within(got, expected.output, expected.bound)


@every_isa
@every_cache
@examples(5)
@given(
    position=st.sampled_from([0, 1, 100, 127, 250, 2035, 2047, 4090]),
    rows=st.sampled_from([2, 5, 16, 17]),
    heads=st.sampled_from([(1, 1), (3, 1), (2, 3), (1, 5), (1, 9)]),
    dim=st.sampled_from([6, 20, 64]),
    seed=st.integers(0, 2**31),
)
def test_a_row_is_the_same_bits_alone_and_among_others(
    isa: str, cache: str, position: int, rows: int, heads: tuple[int, int], dim: int, seed: int
) -> None:
    """Row by row into the cache, or all at once, few rows (drafts) or many (prefill): the same output and the same
    pages to the bit."""
    case = Case.make(rows, position, *heads, dim, seed)
    expected = wanted(cache, case, 0.2)
    together, after = attend(isa, cache, case, 0.2, expected.before, 2)
    held = expected.before
    for row in range(rows):
        part = slice(row, row + 1)
        alone = Case(case.q[part], case.k[part], case.v[part], case.old_keys, case.old_values, case.position + row)
        got, held = attend(isa, cache, alone, 0.2, held, 1 + row % 3)
        same_bits(got, together[part])
    for page, other in zip(held, after, strict=True):
        same_bits(page, other)


@every_isa
@every_cache
@pytest.mark.parametrize("rows", [1, 5])
def test_large_scores_do_not_overflow(isa: str, cache: str, rows: int) -> None:
    """Scores of some 10,000: softmax takes the largest alone."""
    case = Case.make(rows, 140, 1, 4, 32, 9, size=40)
    expected = wanted(cache, case, 1.0)
    got, _ = attend(isa, cache, case, 1.0, expected.before, 2)
    assert np.isfinite(got).all()
    within(got, expected.output, 0.3)


@every_isa
@every_cache
@pytest.mark.parametrize("rows", [1, 6])
def test_equal_keys_give_the_mean_of_the_values(isa: str, cache: str, rows: int) -> None:
    """Zero queries weigh all positions alike, across parts and pages, however many of them there are."""
    case = Case.make(rows, 300, 2, 2, 48, 3)
    case = case._replace(q=np.zeros_like(case.q))
    expected = wanted(cache, case, 1.0)
    got, after = attend(isa, cache, case, 1.0, expected.before, 3)
    values = np.concatenate([reference.unpack_page(cache, page, 48)[1] for page in after], 1)
    for row in range(rows):
        mean = values[:, : 301 + row].astype(np.float64).mean(1)
        within(got[row], np.repeat(mean, 2, 0), 700 * EPS * np.abs(values[:, : 301 + row]).max())


@examples(60)
@given(
    dim=st.sampled_from([2, 6, 20, 32, 64, 80]),
    size=st.sampled_from([0.05, 1.0, 100.0, 1e5]),
    seed=st.integers(0, 2**31),
)
def test_the_q8_cache_is_within_half_a_step(dim: int, size: float, seed: int) -> None:
    """Of what was written: 1/254 of the largest in a key's group of 32 or in a value, and a little."""
    rng = np.random.default_rng(seed)
    keys, values = rng.standard_normal((2, 2, 40, dim)).astype(np.float32) * np.float32(size)
    keys[:, :, ::GROUP] = size  # no group's scale is below float16's normal numbers
    stored_keys, stored_values = (part[:, :40] for part in reference.unpack_page("q8", pack(keys, values), dim))
    for group in range(0, dim, GROUP):
        part = keys[:, :, group : group + GROUP]
        step = np.abs(part).max(2, keepdims=True) / 127
        within(stored_keys[:, :, group : group + GROUP], part, 0.503 * step)
    within(stored_values, values, 0.5001 * np.abs(values).max(2, keepdims=True) / 127)


@pytest.mark.parametrize("size", [1e-3, 3e-4, 1e-4, 1e-5, 1e-8])
def test_small_keys_keep_their_signs(size: float) -> None:
    """A scale below 2**-14 is a subnormal float16."""
    keys = np.random.default_rng(0).standard_normal((1, 200, 64)).astype(np.float32) * np.float32(size)
    stored = reference.unpack_page("q8", pack(keys, keys), 64)[0][:, :200]
    assert (stored * keys >= 0).all()


def pack(keys: Array, values: Array) -> Array:
    return reference.pack_page("q8", keys, values)


def test_pages_hold_every_position_once() -> None:
    """What is packed comes back, for float16 and float32 to the bit; a head takes the bytes that the records say."""
    rng = np.random.default_rng(2)
    for cache in reference.CACHES:
        for dim in (2, 20, 64):
            keys, values = rng.standard_normal((2, 3, PAGE, dim)).astype(np.float16).astype(np.float32)
            page = reference.pack_page(cache, keys, values)
            assert page.shape == (3, kv_head_bytes(cache, dim))
            back = reference.unpack_page(cache, page, dim)
            for part, other in zip(back, (keys, values), strict=True):
                within(part, other, 0.0 if cache != "q8" else 0.03)
