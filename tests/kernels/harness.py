"""Calls compiled kernels on numpy arrays: records from keyword arguments, buffers between guards, hostile padding.

Every buffer is an allocation of its own and the run's ARENA is 0, so that offsets are plain addresses. Whatever a
kernel must not touch holds POISON, which is NaN as float32 and float16: reading it spoils the result, writing it is
found when the ``Memory`` closes.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from numpy.typing import NDArray

from edgerun_kernels.build.load import Kernels, kernels
from edgerun_kernels.layouts import RECORD_FIELDS, Head
from edgerun_kernels.memory import aligned
from edgerun_kernels.record import Run, Sequence, Skip
from edgerun_kernels.reference import Quantised, QuantisedRows, activation_tiles, row_tiles
from edgerun_kernels.registry import Op, put
from edgerun_kernels.runtime.team import Team
from edgerun_kernels.targets import usable

Array = NDArray[Any]
ISAS = [target.name for target in usable()][: 1 if os.environ.get("EDGERUN_TESTED_ISAS") == "best" else None]
THREADS = (1, 2, 3)
GUARD = 256
POISON = 0xFF
EPS = 2.0**-24
"""Largest relative error of one float32 operation."""
TINY = 1e-37
"""Absolute slack for what underflows."""

every_isa = pytest.mark.parametrize("isa", ISAS)


def examples(count: int) -> Callable[[Any], Any]:
    """Hypothesis settings: at most ``count`` examples, the same ones every time on CI; $EDGERUN_EXAMPLES: that share of
    them, for emulated processors."""
    share = float(os.environ.get("EDGERUN_EXAMPLES", "1"))
    return settings(max_examples=max(1, round(count * share)), deadline=None, derandomize="CI" in os.environ)


class Memory:
    """Buffers between guards; leaving the context checks that no guard and no gap between rows was written."""

    def __init__(self) -> None:
        self._guarded: list[tuple[Array, Array]] = []  # (whole allocation, mask of the bytes that must stay poison)
        self._kept: list[Array] = []

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, kind: Any, *rest: Any) -> None:
        if kind is None:
            self.check()

    def check(self) -> None:
        for whole, guard in self._guarded:
            written = np.flatnonzero(guard & (whole != POISON))
            assert written.size == 0, (
                f"written outside its buffer, at {written[:8] - GUARD} of {len(whole) - 2 * GUARD}"
            )

    def room(self, shape: tuple[int, ...], dtype: Any, gap: int = 0) -> Array:
        """An uninitialised (poisoned) array; with ``gap``, rows (first axis) lie that many guarded bytes apart."""
        item = np.dtype(dtype).itemsize
        row = item * int(np.prod(shape[1:], dtype=np.int64))
        whole = aligned(2 * GUARD + shape[0] * (row + gap))
        whole[:] = POISON
        guard = np.ones(len(whole), bool)
        guard[GUARD:-GUARD].reshape(shape[0], row + gap)[:, :row] = False
        self._guarded.append((whole, guard))
        inside = whole[GUARD:-GUARD].view(dtype)
        strides = (row + gap, *np.empty(shape[1:], dtype).strides)
        return np.lib.stride_tricks.as_strided(inside, shape, strides)

    def hold(self, values: Array, gap: int = 0) -> Array:
        """A copy of ``values`` between guards."""
        copy = self.room(values.shape, values.dtype, gap)
        copy[...] = values
        return copy

    def rows(self, values: Array, multiple: int = 32, gap: int = 64) -> Array:
        """Float rows [rows, k], padded with zeros to a multiple of columns, poison from row to row."""
        padded = self.room((values.shape[0], -(-values.shape[1] // multiple) * multiple), values.dtype, gap)
        padded[...] = 0
        padded[:, : values.shape[1]] = values
        return padded

    def op(self, op: Op | str, **fields: Array | float | int) -> int:
        """A record's address; arrays stand for their addresses, floats for their bits. op: or its kernel."""
        record = aligned(8 * RECORD_FIELDS).view(np.int64)
        record[Head.CODE] = Op[op.upper()] if isinstance(op, str) else op
        put(record, **{name: _integer(value) for name, value in fields.items()})
        self._kept += [record, *(v for v in fields.values() if isinstance(v, np.ndarray))]
        return address(record)

    def policies(self, **fields: Array | float | int) -> Array:
        """A table of sparsity: of no projection, and of projection 1 these fields of ``Skip``."""
        table = aligned(2 * 8 * Skip.COUNT).view(np.int64).reshape(2, Skip.COUNT)
        for name, value in fields.items():
            table[1, Skip[name]] = _integer(value)
        self._kept += [table, *(v for v in fields.values() if isinstance(v, np.ndarray))]
        return table

    def run(self, *sequences: Array, **fields: Array | int) -> int:
        """A run record's address. sequences: records as ``sequence`` gives them; by default one that has all rows, with
        POSITION, PAGES, ATTENTION, DECODES (of one row: 1) and VARIANT from here."""
        record = aligned(8 * Run.COUNT).view(np.int64)
        barrier = aligned(128)
        record[Run.BARRIER] = address(barrier)
        of_sequence = {name: fields.pop(name, 0) for name in ("PAGES", "ATTENTION", "VARIANT")}
        if not sequences:
            rows = fields["N_ROWS"]
            more = {name: fields.get(name, 0) for name in ("N_OUT", "POSITION")}
            decodes = fields.pop("DECODES", int(rows == 1))
            sequences = (self.sequence(N_ROWS=rows, DECODES=decodes, **more, **of_sequence),)
        table = self.hold(np.stack(sequences))
        fields |= {
            "SEQUENCES": table,
            "N_SEQUENCES": len(table),
            "POLICIES": int(table[:, Sequence.ATTENTION].any()),
            "VARIANTS": int(table[:, Sequence.VARIANT].any()),
        }
        for name, value in fields.items():
            record[Run[name]] = _integer(value)
        self._kept += [record, barrier, *(v for v in fields.values() if isinstance(v, np.ndarray))]
        return address(record)

    def sequence(self, **fields: Array | int) -> Array:
        """A Sequence record, int64 [Sequence.COUNT]."""
        record = np.zeros(Sequence.COUNT, np.int64)
        for name, value in fields.items():
            record[Sequence[name]] = _integer(value)
        self._kept += [v for v in fields.values() if isinstance(v, np.ndarray)]
        return record


def tape(*ops: int) -> Array:
    """The op records at these addresses, one behind the other."""
    kind = ctypes.c_int64 * RECORD_FIELDS
    return np.stack([np.ctypeslib.as_array(kind.from_address(op)) for op in ops])


def address(array: Array) -> int:
    return int(array.ctypes.data)


def _integer(value: Array | float | int) -> int:
    if isinstance(value, np.ndarray):
        return address(value)
    if isinstance(value, float):
        return int(np.float64(value).view(np.int64))
    return int(value)


def stride(rows: Array) -> int:
    return int(rows.strides[0])


def call(isa: str | Kernels, name: str, op: int, run: int, n_threads: int = 1) -> None:
    """The op kernel, one thread's part after the other: for kernels without a barrier inside."""
    kernel = (kernels(isa) if isinstance(isa, str) else isa).op(name)
    for tid in range(n_threads):
        kernel(op, run, tid, n_threads)


_teams: dict[tuple[str | Kernels, int], Team] = {}


def team(isa: str | Kernels, n_threads: int) -> Team:
    """A team that lives as long as the tests, and takes all its threads."""
    if (isa, n_threads) not in _teams:
        made = _teams[isa, n_threads] = Team(kernels(isa) if isinstance(isa, str) else isa, n_threads)
        setattr(made._width, "ran", lambda seconds, stalled: None)  # noqa: B010 (mypy knows it as a method)
    return _teams[isa, n_threads]


def loaded(isa: str) -> Kernels:
    return kernels(isa)


def linear_op(
    memory: Memory, op: Op | str, x: Array, y: Array, weights: dict[str, Array], n: int, k: int, **fields: Array | int
) -> int:
    """The record of a linear layer or, with x unused, of an embedding; ``weights`` as ``layout.pack`` gives them."""
    payload = weights["w" if "w" in weights else "q"]
    for suffix, field in (("d", "D"), ("m", "M"), ("s", "M")):
        if suffix in weights:
            fields[field] = memory.hold(weights[suffix])
    shared = {"X": x, "X_STRIDE": stride(x), "Y": y, "Y_STRIDE": stride(y), "N": n, "K": k}
    return memory.op(op, **{**shared, "W": memory.hold(payload), **fields})


def activations(memory: Memory, x: Quantised | QuantisedRows, copies: int = 1) -> Array:
    """The tiles of ``x`` [tiles, bytes]; of one row, so many copies. What means nothing is poison."""
    tiles, _ = activation_tiles(x) if isinstance(x, Quantised) else row_tiles(x)
    return memory.hold(np.repeat(tiles, copies if len(x[0]) == 1 else 1, 0), gap=64)


def within(got: Array, wanted: Array, bound: Array | float) -> None:
    """Asserts |got - wanted| <= bound + TINY everywhere; NaN is never within."""
    error = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    allowed = np.broadcast_to(np.asarray(bound, np.float64), error.shape) + TINY
    if not (error <= allowed).all():
        worst = np.unravel_index(np.argmax(np.where(np.isnan(error), np.inf, error / allowed)), error.shape)
        at = tuple(int(i) for i in worst)
        raise AssertionError(f"at {at}: got {got[at]!r}, wanted {wanted[at]!r}, may differ by {allowed[at]:.3g}")


def same_bits(a: Array, b: Array) -> None:
    np.testing.assert_array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8))


# --- values worth trying ---------------------------------------------------------------------------------------------

PATTERNS = (
    "normal", "outliers", "zeros", "negative zero", "equal", "extremes", "subnormal", "tiny", "huge", "mixed", "one",
)  # fmt: skip


def floats(pattern: str, shape: tuple[int, ...], rng: np.random.Generator) -> NDArray[np.float32]:
    """Finite float32 values of a kind; "huge" is 1e30."""
    normal = rng.standard_normal(shape).astype(np.float32)
    if pattern == "outliers":  # a few numbers stand far above the rest of their row
        return np.where(rng.random(shape) < 0.03, normal * np.float32(40), normal)
    if pattern == "zeros":
        return np.zeros(shape, np.float32)
    if pattern == "negative zero":
        return np.full(shape, -0.0, np.float32)
    if pattern == "equal":
        return np.full(shape, rng.standard_normal(), np.float32)
    if pattern == "extremes":  # quantise to +-127
        return rng.choice(np.array([-127, 127], np.float32), shape)
    if pattern == "subnormal":
        return (normal * np.float32(1e-40)).astype(np.float32)
    if pattern == "tiny":
        return normal * np.float32(1e-30)
    if pattern == "huge":
        return np.clip(normal, -1, 1) * np.float32(1e30)
    if pattern == "mixed":
        return normal * (10.0 ** rng.integers(-20, 8, shape)).astype(np.float32)
    if pattern == "one":
        values = np.zeros(shape, np.float32)
        values.reshape(-1)[rng.integers(0, values.size)] = -3.5
        return values
    return normal
