"""Ternary layers of one input by column, and the keeping of large inputs before them: bit for bit as dense."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package.layout import Unpacked
from edgerun.package.layout import pack as dense
from edgerun.sparsity import layout
from edgerun_kernels import reference
from edgerun_kernels.record import Keep, Lines, ternary_scratch_bytes, triples_scratch_bytes

from .harness import (
    PATTERNS,
    THREADS,
    Array,
    Memory,
    activations,
    address,
    call,
    every_isa,
    examples,
    floats,
    same_bits,
    stride,
)
from .weights import padded, two_bits

FORMATS = st.sampled_from(["ternary", "ternary_triples"])
ALL = 40
"""In a thread's scratch, whether all columns are wanted; see ``column_list``."""
ROWS = st.lists(st.integers(1, 150) | st.integers(250, 600), min_size=1, max_size=3)
COLUMNS = st.integers(1, 140) | st.integers(1000, 1100)


class Stack:
    """Layers with one input, codes [n, k] and a scale each, in memory."""

    def __init__(self, memory: Memory, fmt: str, rows: list[int], k: int, rng: np.random.Generator) -> None:
        self.memory, self.fmt, self.rows, self.k = memory, fmt, rows, k
        self.codes = [rng.integers(0, 3, (n, k)).astype(np.uint8) for n in rows]
        self.scales = [rng.random(1).astype(np.float32) + np.float32(0.1) for _ in rows]
        pairs = list(zip(self.codes, self.scales, strict=True))
        wanted = layout.parts(fmt, rows, k)["q"]
        columns = {"q": np.full(wanted.shape, 0xFF, wanted.dtype)}
        layout.pack(fmt, [Unpacked(codes, d, None) for codes, d in pairs], columns)
        self.q = memory.hold(columns["q"])
        self.stored = [dense(fmt, codes, d) for codes, d in pairs]

    def run(
        self,
        isa: str,
        x: reference.QuantisedRows,
        n_threads: int,
        most: int = 1 << 40,
        kept: reference.QuantisedRows | None = None,
    ) -> tuple[list[Array], int]:
        """The outputs of one row or several, and how many columns were counted. kept: what a policy leaves of it."""
        rows, memory = len(x.ints), self.memory
        tiles = activations(memory, x, n_threads)
        left = activations(memory, x if kept is None else kept, n_threads)
        n_stack = layout.stack_rows(self.fmt, self.rows)
        private = -(-ternary_scratch_bytes(n_stack, self.k) // 64) * 64
        counter = memory.hold(np.zeros(1, np.int64))
        shared: dict[str, Any] = {
            "K": self.k,
            "PROJECTION": 1,
            "X": tiles,
            "X_STRIDE": stride(tiles),
            "X_PRIVATE": stride(tiles) if rows == 1 else 0,
        }
        lists = memory.room((n_threads, private), np.uint8)
        lists[:, ALL : ALL + 8] = 0
        policies = memory.policies(
            KEEP=Keep.LARGE,
            LINES=Lines.TERNARY,
            W=self.q,
            MOST=most,
            STACK=n_stack,
            LISTS=lists,
            LISTS_PRIVATE=private,
            ROW=left,
            ROW_PRIVATE=stride(left),
        )
        run = memory.run(N_ROWS=rows, N_OUT=rows, COLUMNS_READ=address(counter), SPARSITY=policies)
        call(isa, "sum_columns", memory.op("skip_columns", **shared), run, n_threads)
        kernel = "linear_ternary" if self.fmt == "ternary" else "linear_ternary_triples"
        outputs, start = [], 0
        for n, stored in zip(self.rows, self.stored, strict=True):
            y = memory.room((rows, padded(n)), np.float32, gap=64)
            weights = {"W": memory.hold(stored["q"]), "D": memory.hold(stored["d"])}
            places: dict[str, Any] = {"Y": y, "Y_STRIDE": stride(y), "START": start}
            if self.fmt == "ternary_triples":
                own = memory.room((n_threads, -(-triples_scratch_bytes(n, self.k) // 64) * 64), np.uint8)
                places |= {"SCRATCH": own, "SCRATCH_PRIVATE": stride(own)}
            call(isa, kernel, memory.op(kernel, **shared, **weights, **places, N=n), run, n_threads)
            outputs.append(y)
            start += padded(n)
        return outputs, int(counter[0])

    def wanted(self, x: reference.QuantisedRows) -> list[Array]:
        return [two_bits(x, codes, d) for codes, d in zip(self.codes, self.scales, strict=True)]


@every_isa
@examples(100)
@given(
    share=st.sampled_from([0.0, 0.01, 0.1, 0.5, 1.0]),
    pattern=st.sampled_from([p for p in PATTERNS if p != "huge"]),
    fmt=FORMATS,
    rows=ROWS,
    k=COLUMNS,
    n_threads=st.sampled_from(THREADS),
    seed=st.integers(0, 2**31),
)
def test_what_is_left_is_multiplied(
    isa: str, share: float, pattern: str, fmt: str, rows: list[int], k: int, n_threads: int, seed: int
) -> None:
    """By the columns that a policy has left; where they are too many, by all columns of the input as it was."""
    rng = np.random.default_rng(seed)
    x = reference.quantize_rows(floats(pattern, (1, k), rng))
    kept = reference.keep_rows(x, rng.random(x.ints.shape) < share)
    count = int(np.count_nonzero(kept.ints))
    with Memory() as memory:
        layers = Stack(memory, fmt, rows, k, rng)
        got, read = layers.run(isa, x, n_threads, count, kept)
        for y, wanted in zip(got, layers.wanted(kept), strict=True):
            same_bits(y, wanted)
        assert read == count
        if count:
            got, read = layers.run(isa, x, n_threads, count - 1, kept)
            for y, wanted in zip(got, layers.wanted(x), strict=True):
                same_bits(y, wanted)
            assert read == x.ints.shape[1]


@every_isa
@pytest.mark.parametrize("fmt", ["ternary", "ternary_triples"])
@pytest.mark.parametrize("n_rows", [2, 5])
def test_several_rows_take_all_columns(isa: str, fmt: str, n_rows: int) -> None:
    rng = np.random.default_rng(n_rows)
    x = reference.quantize_rows(floats("normal", (n_rows, 100), rng))
    with Memory() as memory:
        layers = Stack(memory, fmt, [40, 20], 100, rng)
        got, read = layers.run(isa, x, 2)
        for y, wanted in zip(got, layers.wanted(x), strict=True):
            same_bits(y, wanted)
        assert read == 0


@every_isa
@examples(100)
@given(
    pattern=st.sampled_from(PATTERNS),
    k=COLUMNS | st.integers(3000, 3100),
    threshold=st.sampled_from([0.0, 0.01, 0.5, 1.0, 3.0, 1e30]),
    share=st.sampled_from([0.0, 0.0, 0.01, 0.3, 0.9]),
    seed=st.integers(0, 2**31),
)
def test_large_inputs_are_kept(isa: str, pattern: str, k: int, threshold: float, share: float, seed: int) -> None:
    """Those above a threshold, or about a share; a row that is all zeros where none is."""
    rng = np.random.default_rng(seed)
    x = reference.quantize_rows(floats(pattern, (1, k), rng))
    worth = rng.random(k).astype(np.float32) + np.float32(0.1)
    size = reference.row_sizes(x, worth)[0]
    with Memory() as memory:
        tiles = activations(memory, x, 2)
        before, y = tiles.copy(), memory.room(tiles.shape, np.uint8, gap=64)
        room = memory.room((2, -(-ternary_scratch_bytes(256, k) // 64) * 64), np.uint8)
        fields: dict[str, Any] = {"ROW": y, "ROW_PRIVATE": stride(y), "LISTS": room, "LISTS_PRIVATE": stride(room)}
        fields |= {"THRESHOLD": threshold, "SHARE": share, "WORTH": memory.rows(worth[None], gap=0), "MOST": 1 << 40}
        policies = memory.policies(KEEP=Keep.LARGE, LINES=Lines.TERNARY, **fields)
        op = memory.op("skip_columns", X=tiles, X_PRIVATE=stride(tiles), K=k, PROJECTION=1)
        call(isa, "keep_inputs", op, memory.run(N_ROWS=1, SPARSITY=policies), 2)
        same_bits(tiles, before)
        same_bits(y[1], y[0])
        got = y[:1].copy()
    ints = got[0, 64 : 64 + x.ints.shape[1]].view(np.int8)
    gone = (x.ints[0] != 0) & (ints == 0)
    keep = size > size[gone].max(initial=-1.0)
    if share == 0:
        limit = threshold * float(np.sqrt(np.square(size, dtype=np.float64).mean()))
        assert (np.abs(size[gone]) <= limit * (1 + 1e-5)).all()
        assert (size[ints != 0] >= limit * (1 - 1e-5)).all()
    elif len(size) < 48 * 32:  # all are looked at
        assert np.count_nonzero(ints) <= share * k + 1
    if (size[ints != 0] > size[gone].max(initial=-1.0)).all():
        bytes_, means = reference.row_tiles(reference.keep_rows(x, keep[None]))
        same_bits(got[means], bytes_[means])
