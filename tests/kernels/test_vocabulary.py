"""Every operation that an instruction set defines, alone, against numpy: through LLVM, without Numba."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llvmlite import ir
from numpy.typing import NDArray

from edgerun_kernels.build.emit import optimise, prepared
from edgerun_kernels.simd.named import I64, NAMED, POINTER, PREFIX

from .elf import target
from .harness import every_isa, examples

Array = NDArray[Any]
SIZES = pytest.mark.parametrize("lanes", [16, 8])


@cache
def compiled(isa: str) -> Any:
    """An engine with a function for each operation: addresses of the result and of the arguments, one after the other.
    An int64 or a pointer comes and goes as itself."""
    machine, module = prepared(target(isa))
    module.link_in(llvm.parse_assembly(str(callers())))
    optimise(machine, module)
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine


def callers() -> ir.Module:
    module = ir.Module()
    for name, (result, args) in NAMED.items():
        takes = ir.FunctionType(ir.VoidType(), [I64] * (1 + len(args)))
        fn = ir.Function(module, takes, f"call_{name}")
        b = ir.IRBuilder(fn.append_basic_block())
        values = []
        for kind, address in zip(args, fn.args[1:], strict=True):
            if kind == I64:
                values.append(address)
            elif kind == POINTER:
                values.append(b.inttoptr(address, kind))
            else:
                values.append(b.load(b.inttoptr(address, kind.as_pointer())))
                values[-1].align = 1
        out = b.call(ir.Function(module, ir.FunctionType(result, args), PREFIX + name), values)
        if result != ir.VoidType():
            b.store(out, b.inttoptr(fn.args[0], result.as_pointer())).align = 1
        b.ret_void()
    return module


def apply(isa: str, name: str, result: Array, *args: Array | int) -> Array:
    """Fills ``result`` with what the operation gives."""
    address = compiled(isa).get_function_address(f"call_{name}")
    values = [arg if isinstance(arg, int) else arg.ctypes.data for arg in (result, *args)]
    ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * len(values))(address)(*values)
    return result


def named(name: str, lanes: int) -> str:
    return name if lanes == 16 else f"{name}_8"


def constant(isa: str, name: str) -> int:
    return int(apply(isa, name, np.empty(1, np.int64))[0])


def dots(w: Array, x: Array) -> Array:
    return (w.astype(np.int32) * x.astype(np.int32)).reshape(-1, 4).sum(1, dtype=np.int32)


def activations(rng: np.random.Generator, lanes: int, extreme: bool) -> Array:
    return (rng.choice([-127, 127], 4 * lanes) if extreme else rng.integers(-127, 128, 4 * lanes)).astype(np.int8)


@every_isa
@SIZES
@examples(100)
@given(calls=st.integers(1, 8), extreme=st.booleans(), seed=st.integers(0, 2**31))
def test_dot_u4(isa: str, lanes: int, calls: int, extreme: bool, seed: int) -> None:
    """Up to 8 calls between begin and end, of weights 0 to 15; of any bytes, where the ISA says so."""
    rng = np.random.default_rng(seed)
    start = rng.integers(-(2**20), 2**20, lanes).astype(np.int32)
    acc = apply(isa, named("dot_u4_begin", lanes), np.empty(lanes, np.int32), start)
    wanted = start.copy()
    most = 255 if constant(isa, "dot_u4_takes_u8") else 15
    for _ in range(calls):
        w = (np.full(4 * lanes, most) if extreme else rng.integers(0, most + 1, 4 * lanes)).astype(np.uint8)
        x = activations(rng, lanes, extreme)
        acc = apply(isa, named("dot_u4", lanes), np.empty(lanes, np.int32), acc, w, x)
        wanted += dots(w, x)
    end = apply(isa, named("dot_u4_end", lanes), np.empty(lanes, np.int32), acc, start)
    np.testing.assert_array_equal(end, wanted)


@every_isa
@examples(100)
@given(calls=st.integers(1, 4), extreme=st.booleans(), seed=st.integers(0, 2**31))
def test_pairs(isa: str, calls: int, extreme: bool, seed: int) -> None:
    """Two rows of activations by eight columns a call, of which four are in each vector of weights."""
    rng = np.random.default_rng(seed)
    starts = rng.integers(-(2**20), 2**20, (2, 8)).astype(np.int32)
    acc = apply(isa, "pairs_begin_8", np.empty(16, np.int32), *starts)
    wanted = starts.copy()
    for _ in range(calls):
        w = np.full((2, 32), 15, np.uint8) if extreme else rng.integers(0, 16, (2, 32)).astype(np.uint8)
        x = activations(rng, 4, extreme).reshape(2, 8)
        places = [int(row.ctypes.data) for row in x]
        acc = apply(isa, "pairs_dot_u4_8", np.empty(16, np.int32), acc, *w, *places)
        for row in range(2):
            for quad in range(2):
                wanted[row] += dots(w[quad], np.tile(x[row, 4 * quad : 4 * quad + 4], 8))
    end = apply(isa, "pairs_end_8", np.empty((2, 8), np.int32), acc, *starts)
    np.testing.assert_array_equal(end, wanted)


@every_isa
@SIZES
@examples(100)
@given(extreme=st.booleans(), seed=st.integers(0, 2**31))
def test_dot_i8(isa: str, lanes: int, extreme: bool, seed: int) -> None:
    """Signed weights; what the ISA adds to each, ``dot_i8_bias`` says."""
    rng = np.random.default_rng(seed)
    acc = rng.integers(-(2**20), 2**20, lanes).astype(np.int32)
    w = (rng.choice([-128, 127], 4 * lanes) if extreme else rng.integers(-128, 128, 4 * lanes)).astype(np.int8)
    x = activations(rng, lanes, extreme)
    got = apply(isa, named("dot_i8", lanes), np.empty(lanes, np.int32), acc, w, x)
    np.testing.assert_array_equal(got, acc + dots(w.astype(np.int32) + constant(isa, "dot_i8_bias"), x))


@every_isa
@SIZES
@pytest.mark.parametrize("bits", [4, 2])
@examples(20)
@given(seed=st.integers(0, 2**31))
def test_high_bits(isa: str, bits: int, lanes: int, seed: int) -> None:
    value = np.random.default_rng(seed).integers(0, 256, 4 * lanes).astype(np.uint8)
    got = apply(isa, named(f"high_u{bits}", lanes), np.empty(4 * lanes, np.uint8), value)
    np.testing.assert_array_equal(got, value >> (8 - bits))


@every_isa
@SIZES
@examples(50)
@given(seed=st.integers(0, 2**31), exponent=st.integers(-30, 30))
def test_fma(isa: str, lanes: int, seed: int, exponent: int) -> None:
    """One rounding or, where there is no such instruction, two."""
    x, y, z = (np.random.default_rng(seed).standard_normal((3, lanes)) * 2.0**exponent).astype(np.float32)
    got = apply(isa, named("fma", lanes), np.empty(lanes, np.float32), x, y, z)
    product = x.astype(np.float64) * y
    bound = 2.0**-24 * (np.abs(product + z) + np.abs(product)) + 1e-40
    assert (np.abs(got - (product + z)) <= bound).all()


@every_isa
@SIZES
def test_every_half_becomes_its_float(isa: str, lanes: int) -> None:
    halves = np.arange(2**16, dtype=np.uint16).reshape(-1, lanes)
    got = np.stack([apply(isa, named("f16_to_f32", lanes), np.empty(lanes, np.float32), half) for half in halves])
    wanted = halves.view(np.float16).astype(np.float32)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    sure = ~np.isnan(wanted)
    np.testing.assert_array_equal(got.view(np.uint32)[sure], wanted.view(np.uint32)[sure])


@every_isa
@examples(200)
@given(values=st.lists(st.floats(width=32), min_size=16, max_size=16))
def test_f32_to_f16(isa: str, values: list[float]) -> None:
    wide = np.array(values, np.float32)
    got = apply(isa, "f32_to_f16", np.empty(16, np.uint16), wide)
    with np.errstate(over="ignore"):
        wanted = wide.astype(np.float16)
    np.testing.assert_array_equal(np.isnan(got.view(np.float16)), np.isnan(wanted))
    sure = ~np.isnan(wanted)
    np.testing.assert_array_equal(got[sure], wanted.view(np.uint16)[sure])


@every_isa
def test_every_half_comes_back(isa: str) -> None:
    halves = np.arange(2**16, dtype=np.uint16)
    halves = halves[~np.isnan(halves.view(np.float16))]
    halves = halves[: len(halves) // 16 * 16].reshape(-1, 16)
    for half in halves:
        wide = half.view(np.float16).astype(np.float32)
        np.testing.assert_array_equal(apply(isa, "f32_to_f16", np.empty(16, np.uint16), wide), half)


@every_isa
@examples(50)
@given(seed=st.integers(0, 2**32 - 1))
def test_words_are_looked_up(isa: str, seed: int) -> None:
    """By the low five bits of each index, whatever is above."""
    rng = np.random.default_rng(seed)
    table, index = rng.integers(0, 2**16, (2, 32)).astype(np.uint16)
    got = apply(isa, "lookup_i16", np.empty(32, np.uint16), table, index)
    np.testing.assert_array_equal(got, table[index & 31])


@every_isa
@examples(50)
@given(seed=st.integers(0, 2**32 - 1))
def test_high_halves_of_products(isa: str, seed: int) -> None:
    x, y = np.random.default_rng(seed).integers(0, 2**16, (2, 32)).astype(np.uint16)
    y[:16] = 1 << np.arange(16)
    got = apply(isa, "high_product_u16", np.empty(32, np.uint16), x, y)
    np.testing.assert_array_equal(got, (x.astype(np.uint32) * y) >> 16)


@every_isa
def test_codes_of_three_have_digits(isa: str) -> None:
    codes = np.arange(32, dtype=np.uint16)
    wanted = codes % 9 % 3 | codes // 9 << 4 | codes % 9 // 3 << 8
    for above in (0, 0x20, 0xFFE0):
        got = apply(isa, "digits_i16", np.empty(32, np.uint16), codes | np.uint16(above))
        np.testing.assert_array_equal(got, wanted)


@every_isa
@examples(50)
@given(window=st.sampled_from([32, 64, 128, 1000]), seed=st.integers(0, 2**31))
def test_windows(isa: str, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    table = rng.standard_normal(window + 128).astype(np.float32)[1:]  # of any alignment
    index = rng.integers(0, window, 16).astype(np.int32)
    for name in ("gather", *(f"window_{size}" for size in (32, 64, 128) if size >= window)):
        got = apply(isa, name, np.empty(16, np.float32), int(table.ctypes.data), index)
        np.testing.assert_array_equal(got, table[index])


@every_isa
def test_int4_to_float(isa: str) -> None:
    """Whatever lies above the low four bits."""
    for start in range(0, 256, 16):
        codes = np.arange(start, start + 16, dtype=np.int32)
        got = apply(isa, "int4_to_float", np.empty(16, np.float32), codes)
        np.testing.assert_array_equal(got, (codes & 15) - 16 * ((codes & 8) > 0))


@every_isa
def test_time_goes_on_and_pauses_end(isa: str) -> None:
    before = constant(isa, "ticks")
    while constant(isa, "ticks") == before:
        apply(isa, "pause", np.empty(0))
    assert constant(isa, "ticks") > before > 0


@every_isa
def test_nobody_waits_for_what_has_come(isa: str) -> None:
    """Waking nobody does no harm; waiting while a number is another returns at once. Sleepers are in test_team."""
    word = np.array([7], np.int64)
    apply(isa, "wake_all", np.empty(0), int(word.ctypes.data))
    apply(isa, "wait_on", np.empty(0), int(word.ctypes.data), 8)


@every_isa
def test_what_is_constant_is_said(isa: str) -> None:
    assert constant(isa, "is_wide") in (0, 1)
    assert constant(isa, "dot_u4_takes_u8") in (0, 1)
    assert constant(isa, "has_lookup_i16") in (0, 1)


def test_no_operation_is_forgotten() -> None:
    tested = {"dot_u4_begin", "dot_u4", "dot_u4_end", "dot_i8", "high_u4", "high_u2", "fma", "f16_to_f32"}
    tested |= {f"{name}_8" for name in tested}
    tested |= {"pairs_begin_8", "pairs_dot_u4_8", "pairs_end_8"}
    rest = {"lookup_i16", "has_lookup_i16", "digits_i16", "high_product_u16", "f32_to_f16", "dot_i8_bias", "is_wide"}
    rest |= {"dot_u4_takes_u8", "ticks", "pause", "wait_on", "wake_all"}
    tested |= {"gather", "window_32", "window_64", "window_128", "int4_to_float"}
    assert set(NAMED) == tested | rest
