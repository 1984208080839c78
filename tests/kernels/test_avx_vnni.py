"""The definitions of AVX-VNNI, which few processors have: compiled for AVX-512 VNNI, they mean the same."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package import layout
from edgerun_kernels import reference
from edgerun_kernels.build.load import Kernels

from .elf import blocks, emitted, target
from .harness import EPS, ISAS, THREADS, examples, floats, same_bits, within
from .test_attention import Case, attend, wanted
from .weights import (
    ACTIVATIONS,
    QUANTISED,
    SHAPES,
    WEIGHTS,
    matrix,
    quantised_linear,
    run_quantised,
    second_terms,
    trits,
)

pytestmark = pytest.mark.skipif("avx512_vnni" not in ISAS, reason="needs a processor with AVX-512 VNNI")
HERE = replace(target("avx512_vnni"), name="avx_vnni")
"""The definitions of the one target for the features of the other: the same LLVM code, but for the encoding."""


@cache
def avx_vnni() -> Kernels:
    return Kernels("avx_vnni", emitted(HERE)[0])


def test_tiles_are_half_blocks() -> None:
    found = [block for block in blocks(emitted(HERE)[1]) if block.count("vpdpbusd") and "linear" in block.function]
    assert found
    assert not any("%zmm" in line for block in found for line in block.instructions if line.startswith("vpdpbusd"))


@examples(150)
@given(
    fmt=st.sampled_from(QUANTISED),
    second=st.sampled_from(["none", "some", "all"]),
    kind=st.sampled_from(WEIGHTS),
    pattern=st.sampled_from(ACTIVATIONS),
    shape=SHAPES,
    seed=st.integers(0, 2**31),
)
def test_linear(fmt: str, second: str, kind: str, pattern: str, shape: tuple[int, int, int], seed: int) -> None:
    """Within the bound of every ISA's; and to the bit what AVX-512 VNNI gives, which adds in the same order."""
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights = matrix(fmt, kind, n, k, rng)
    x = second_terms(reference.quantize(floats(pattern, (rows, k), rng)), second, rng)
    got = run_quantised(avx_vnni(), x, weights, n)
    expected, size = quantised_linear(x, weights)
    within(got, expected, (8 * -(-k // layout.GROUP) + 8) * EPS * size)
    same_bits(run_quantised("avx512_vnni", x, weights, n), got)
    for n_threads in THREADS[1:]:
        same_bits(run_quantised(avx_vnni(), x, weights, n, n_threads), got)


@examples(60)
@given(shape=SHAPES, seed=st.integers(0, 2**31), n_threads=st.sampled_from(THREADS))
def test_ternary(shape: tuple[int, int, int], seed: int, n_threads: int) -> None:
    rows, n, k = shape
    rng = np.random.default_rng(seed)
    weights, x = trits("random", n, k, 0.37, rng), reference.quantize_rows(floats("normal", (rows, k), rng))
    wanted = reference.linear_ternary(x, weights["q"], weights["d"])
    same_bits(run_quantised(avx_vnni(), x, weights, n, n_threads), wanted)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("cache", reference.CACHES)
def test_attention(cache: str, rows: int) -> None:
    case = Case.make(rows, 300, 2, 3, 80, rows)
    expected = wanted(cache, case, 0.1)
    got, after = attend(avx_vnni(), cache, case, 0.1, expected.before, 2)
    within(got, expected.output, expected.bound)
    for page, wanted_page in zip(after, expected.after, strict=True):
        same_bits(page, wanted_page)
