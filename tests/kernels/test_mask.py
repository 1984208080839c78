"""Keeping the large inputs of a quantised row: which they are, and the sums of what is left, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun_kernels import reference
from edgerun_kernels.record import Keep, list_scratch_bytes

from .harness import (
    PATTERNS,
    POISON,
    Array,
    Memory,
    activations,
    call,
    every_isa,
    examples,
    floats,
    same_bits,
    stride,
)
from .weights import second_terms

ALL = 40
"""In a thread's scratch, whether all columns are wanted; see ``column_list``."""
K = st.integers(1, 140) | st.integers(3000, 3100)


def masked(isa: str, x: reference.Quantised, worth: Array, n_threads: int = 1, **fields: float) -> Array:
    """The tile of one row, of the last thread."""
    with Memory() as memory:
        tiles = activations(memory, x, n_threads)
        y = memory.room(tiles.shape, np.uint8, gap=64)
        before = tiles.copy()
        room = memory.room((n_threads, -(-list_scratch_bytes(len(worth)) // 64) * 64), np.uint8)
        policies = memory.policies(
            KEEP=Keep.LARGE,
            ROW=y,
            ROW_PRIVATE=stride(y),
            WORTH=memory.rows(worth[None], gap=0),
            MOST=1 << 40,
            LISTS=room,
            LISTS_PRIVATE=stride(room),
            **fields,
        )
        op = memory.op("skip_columns", X=tiles, X_PRIVATE=stride(tiles), K=len(worth), PROJECTION=1)
        call(isa, "keep_large", op, memory.run(N_ROWS=1, SPARSITY=policies), n_threads)
        same_bits(tiles, before)
        for tile in y[1:]:
            same_bits(tile, y[0])
        return y[-1:].copy()


def tile_of(x: reference.Quantised) -> tuple[Array, Array]:
    return reference.activation_tiles(x)


@every_isa
@examples(100)
@given(
    pattern=st.sampled_from(PATTERNS),
    terms=st.sampled_from(["none", "some", "all"]),
    k=K,
    threshold=st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.0, 1e30]),
    seed=st.integers(0, 2**31),
)
def test_above_a_threshold(isa: str, pattern: str, terms: str, k: int, threshold: float, seed: int) -> None:
    """Relative to the root mean square; inputs within rounding of the limit may go either way."""
    rng = np.random.default_rng(seed)
    x = second_terms(reference.quantize(floats(pattern, (1, k), rng)), terms, rng)
    worth = rng.random(k).astype(np.float32) + np.float32(0.1)
    size = reference.sizes(x, worth).astype(np.float64)
    got = masked(isa, x, worth, 2, THRESHOLD=threshold)
    with np.errstate(over="ignore"):
        root = float(np.float32(np.sqrt((size**2).mean())))
        if not 1e-18 < root < 1e18:  # its squares leave float32
            return
    limit = threshold * root
    near = np.abs(size - limit) <= 1e-5 * limit
    bytes_, means = tile_of(reference.keep_large(x, size >= limit))
    if not near.any():
        same_bits(got[means], bytes_[means])


@every_isa
@examples(60)
@given(
    pattern=st.sampled_from(["normal", "outliers", "mixed", "zeros", "equal", "one"]),
    terms=st.sampled_from(["none", "some", "all"]),
    k=K,
    share=st.sampled_from([0.01, 0.3, 0.5, 0.9, 0.999]),
    seed=st.integers(0, 2**31),
)
def test_a_share(isa: str, pattern: str, terms: str, k: int, share: float, seed: int) -> None:
    """The largest are kept, the others are not, and there are about as many as wanted; the sums are of what is left."""
    rng = np.random.default_rng(seed)
    x = second_terms(reference.quantize(floats(pattern, (1, k), rng)), terms, rng)
    worth = rng.random(k).astype(np.float32) + np.float32(0.1)
    size = reference.sizes(x, worth)[0]
    got = masked(isa, x, worth, SHARE=share)
    n_groups = x.scales.shape[1]
    ints = got[0, 64 : 64 + 48 * n_groups].reshape(n_groups, 48)[:, :32].view(np.int8).ravel()
    gone = (x.first[0] != 0) & (ints == 0)
    limit = size[gone].max(initial=0.0)
    keep = size > limit
    bytes_, means = tile_of(reference.keep_large(x, keep[None]))
    if (size[(ints != 0)] > limit).all():
        left = ((x.first[0] != 0) & keep).sum()
        if n_groups < 48:  # all are looked at
            assert left <= share * k + 1
        if pattern == "normal" and k > 1000:
            assert abs(keep[:k].sum() - share * k) <= 0.1 * k
    if pattern == "normal" and terms == "none":
        np.testing.assert_array_equal(got[means], bytes_[means])


@every_isa
@pytest.mark.parametrize("kernel", ["keep_large", "keep_large_row"])
@pytest.mark.parametrize("most", [0, 39, 40, 100])
def test_nothing_is_written_where_all_are_wanted(isa: str, kernel: str, most: int) -> None:
    """Of 70 inputs 40 are above the threshold: with fewer to be read one by one, it is only said."""
    rng = np.random.default_rng(5)
    values = np.concatenate([np.full(40, 1.0), np.full(30, 0.1)]).astype(np.float32)[rng.permutation(70)][None]
    x = reference.quantize(values) if kernel == "keep_large" else reference.quantize_rows(values)
    with Memory() as memory:
        tiles = activations(memory, x)
        room, y = memory.room((1, 4096), np.uint8), memory.room((1, 4096), np.uint8)
        worth = memory.rows(np.ones((1, 70), np.float32), gap=0)
        policies = memory.policies(KEEP=Keep.LARGE, ROW=y, WORTH=worth, LISTS=room, THRESHOLD=0.5, MOST=most)
        op = memory.op("skip_columns", X=tiles, K=70, PROJECTION=1)
        call(isa, kernel, op, memory.run(N_ROWS=1, SPARSITY=policies))
        said = room[0, ALL : ALL + 8].view(np.int64)[0]
        assert said == (most < 40)
        assert (y == POISON).all() == (most < 40)


@every_isa
@pytest.mark.parametrize("kernel", ["keep_large", "keep_large_row"])
@pytest.mark.parametrize("large", [100, 420, 600, 700, 900])
def test_a_first_look_at_long_rows_only_spares_work(isa: str, kernel: str, large: int) -> None:
    """Of 1,000 inputs so many are large and 500 may be: what is found never depends on the look at some of them."""
    rng = np.random.default_rng(6)
    values = np.where(rng.permutation(1000) < large, 1.0, 0.1).astype(np.float32)[None]
    x = reference.quantize(values) if kernel == "keep_large" else reference.quantize_rows(values)
    with Memory() as memory:
        tiles = activations(memory, x)
        room, y = memory.room((1, 8192), np.uint8), memory.room((1, 8192), np.uint8)
        worth = memory.rows(np.ones((1, 1024), np.float32), gap=0)
        policies = memory.policies(KEEP=Keep.LARGE, ROW=y, WORTH=worth, LISTS=room, THRESHOLD=0.5, MOST=500)
        op = memory.op("skip_columns", X=tiles, K=1000, PROJECTION=1)
        call(isa, kernel, op, memory.run(N_ROWS=1, SPARSITY=policies))
        assert room[0, ALL : ALL + 8].view(np.int64)[0] == (large > 500)
        assert (y == POISON).all() == (large > 500)


@every_isa
@pytest.mark.parametrize("n_rows", [2, 4])
def test_several_rows_are_left_alone(isa: str, n_rows: int) -> None:
    rng = np.random.default_rng(0)
    x = reference.quantize(floats("normal", (n_rows, 40), rng))
    with Memory() as memory:
        tiles = activations(memory, x)
        before = tiles.copy()
        room = memory.room((1, 4096), np.uint8)
        y, worth = memory.room((1, 4096), np.uint8), memory.rows(np.ones((1, 40), np.float32), gap=0)
        policies = memory.policies(KEEP=Keep.LARGE, ROW=y, WORTH=worth, LISTS=room, THRESHOLD=1.0)
        op = memory.op("skip_columns", X=tiles, K=40, PROJECTION=1)
        for kernel in ("keep_large", "skip_columns"):
            call(isa, kernel, op, memory.run(N_ROWS=n_rows, SPARSITY=policies))
        same_bits(tiles, before)
        assert (y == POISON).all() and (room == POISON).all()


@every_isa
@pytest.mark.parametrize("kernel", ["keep_large", "keep_large_row", "keep_changes", "skip_columns"])
def test_nothing_is_done_without_a_policy(isa: str, kernel: str) -> None:
    """Where a run has no table, where the projection's record says none, and of layers that belong to no projection."""
    with Memory() as memory:
        tiles = activations(memory, reference.quantize(floats("normal", (1, 40), np.random.default_rng(0))))
        room, y = memory.room((1, 4096), np.uint8), memory.room((1, 4096), np.uint8)
        none = memory.policies(ROW=y, LISTS=room)
        some = memory.policies(KEEP=Keep.LARGE, ROW=y, LISTS=room)
        for table, projection in ((0, 1), (none, 1), (some, 0)):
            op = memory.op("skip_columns", X=tiles, K=40, PROJECTION=projection)
            call(isa, kernel, op, memory.run(N_ROWS=1, SPARSITY=table))
        assert (y == POISON).all() and (room == POISON).all()
