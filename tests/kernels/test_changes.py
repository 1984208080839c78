"""Delta activations: what is sent, the references and the running sums, exact over thousands of rows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.package.layout import dequantise
from edgerun_kernels import reference
from edgerun_kernels.record import (
    STATE_HEADER,
    Keep,
    Lines,
    activation_bytes,
    list_scratch_bytes,
    state_sums,
)

from .harness import PATTERNS, THREADS, Array, Memory, address, call, every_isa, examples, floats, same_bits, stride
from .test_grouped_columns import Stack, stack
from .weights import padded, run_quantised, second_terms

FORMATS = st.sampled_from(["q4", "q4m", "q8"])
N_PARTS = 2


class ChangedLayers:
    """Layers with one input that run row after row, with a state; buffers as ``run_stack`` has them."""

    def __init__(
        self, memory: Memory, isa: str, layers: Stack, worth: Array, n_threads: int, threshold: float, **fields: int
    ) -> None:
        self.memory, self.isa, self.layers, self.n_threads, k = memory, isa, layers, n_threads, layers.k
        private, n_stack = -(-list_scratch_bytes(k) // 64) * 64, layers.columns["d"].shape[1]
        self.x = memory.room((n_threads, activation_bytes(k, 1)), np.uint8)
        changes = memory.room(self.x.shape, np.uint8)
        self.state = memory.room((state_sums(k) + 8 * N_PARTS * n_stack,), np.uint8)
        self.state[:] = 0
        columns = {key: memory.hold(layers.columns[name]) for key, name in _names(layers.columns)}
        policy: dict[str, Any] = {
            "KEEP": Keep.CHANGED,
            "LINES": Lines.Q8 if layers.fmt == "q8" else Lines.Q4,
            "WORTH": memory.rows(worth[None], gap=0),
            "THRESHOLD": threshold,
            "MOST": 1 << 40,
            "PARTS": N_PARTS,
            "STACK": n_stack,
            "LISTS": memory.room((n_threads, private), np.uint8),
            "LISTS_PRIVATE": private,
            "ROW": changes,
            "ROW_PRIVATE": stride(changes),
            **columns,
            **fields,
        }
        self.policies = memory.policies(**policy)
        shared = {"X": self.x, "X_PRIVATE": stride(self.x), "K": k, "PROJECTION": 1}
        self.skip = memory.op("skip_columns", **shared)
        self.kernel = "linear_q8" if layers.fmt == "q8" else "linear_q4"
        self.products, self.outputs, start = [], [], 0
        for n, stored in zip(layers.rows, layers.stored, strict=True):
            y = memory.room((1, padded(n)), np.float32)
            weights = {key: memory.hold(stored[name]) for key, name in _names(stored)}
            self.products.append(memory.op(self.kernel, **shared, **weights, Y=y, N=n, START=start))
            self.outputs.append(y)
            start += padded(n)

    def row(self, x: reference.Quantised, position: int = 0) -> list[Array]:
        self.x[:] = reference.activation_tiles(x)[0][0]
        run = self.memory.run(N_ROWS=1, N_OUT=1, SPARSITY=self.policies, RUNNING=address(self.state), POSITION=position)
        for kernel, op in (("skip_columns", self.skip), *((self.kernel, op) for op in self.products)):
            call(self.isa, kernel, op, run, self.n_threads)
        return self.outputs

    @property
    def references(self) -> Array:
        end = STATE_HEADER + 4 * (-(-self.layers.k // 32) * 32)
        return self.state[STATE_HEADER:end].view(np.int32).astype(np.int64)

    @property
    def step(self) -> float:
        return float(self.state[16:20].view(np.float32)[0])

    def wanted(self, references: Array, step: float) -> list[Array]:
        """Weights times references, exact, rounded once."""
        values = references[: self.layers.k] * step
        shapes = [(n, self.layers.k) for n in self.layers.rows]
        found = []
        for stored, shape in zip(self.layers.stored, shapes, strict=True):
            found.append((exact(self.layers.fmt, stored, *shape) @ values).astype(np.float32))
        return found


def _names(arrays: dict[str, Array]) -> list[tuple[str, str]]:
    return [(key, name) for key, name in (("W", "q"), ("D", "d"), ("M", "m")) if name in arrays]


def exact(fmt: str, stored: dict[str, Array], n: int, k: int) -> Array:
    """The matrix in float64: for weights of few bits, what float32 rounds off too."""
    if fmt != "q4m":
        return dequantise(fmt, stored, n, k).astype(np.float64)
    d, m = (np.repeat(reference.row_scales(stored[name]).astype(np.float64), 32, 1) for name in ("d", "m"))
    return (reference.nibbles(stored["q"]) * d + m)[:n, :k]


def small(fmt: str, rows: list[int], k: int, rng: np.random.Generator) -> Stack:
    return stack(fmt, rows, k, rng)


@every_isa
@examples(60)
@given(
    fmt=FORMATS,
    patterns=st.lists(st.sampled_from([p for p in PATTERNS if p not in ("huge", "mixed")]), min_size=2, max_size=5),
    terms=st.sampled_from(["none", "some"]),
    rows=st.lists(st.integers(1, 150), min_size=1, max_size=2),
    k=st.integers(1, 140),
    threshold=st.sampled_from([0.0, 0.2, 1.0]),
    n_threads=st.sampled_from(THREADS),
    seed=st.integers(0, 2**31),
)
def test_the_layer_of_the_paper(
    isa: str,
    fmt: str,
    patterns: list[str],
    terms: str,
    rows: list[int],
    k: int,
    threshold: float,
    n_threads: int,
    seed: int,
) -> None:
    """Row after row of all kinds: jumps, flips of sign, zeros, what is too far to be sent at once. References are the
    twin's, outputs are weights times references, bit for bit; without a threshold, whatever came before."""
    rng = np.random.default_rng(seed)
    worth = rng.random(k).astype(np.float32) + np.float32(0.5)
    twin = reference.DeltaInput(worth, threshold)
    with Memory() as memory:
        layers = ChangedLayers(memory, isa, small(fmt, rows, k, rng), worth, n_threads, threshold)
        for position, pattern in enumerate(patterns):
            x = second_terms(reference.quantize(floats(pattern, (1, k), rng)), terms, rng)
            x = reference.keep_large(x, np.arange(x.first.shape[1]) < k)  # the padding is 0
            outputs = layers.row(x, position)
            _, near = twin.send(x, layers.step if position == 0 else None)
            if near.any():
                return
            np.testing.assert_array_equal(layers.references, twin.references)
            for y, n, wanted in zip(outputs, rows, layers.wanted(layers.references, layers.step), strict=True):
                np.testing.assert_array_equal(y[0, :n], wanted)
                assert not y[0, n:].any()


@every_isa
def test_nothing_drifts_in_4096_rows(isa: str) -> None:
    """A walk: after so many additions and subtractions, the sums are those of one multiplication."""
    rng = np.random.default_rng(0)
    rows, k = [40], 70
    values = rng.standard_normal(k)
    with Memory() as memory:
        layers = ChangedLayers(memory, isa, small("q4m", rows, k, rng), np.ones(k, np.float32), 2, 0.3)
        for position in range(4096):
            values = 0.95 * values + 0.3 * rng.standard_normal(k)
            (y,) = layers.row(reference.quantize(values[None].astype(np.float32)), position)
            if position % 256 == 255:
                (wanted,) = layers.wanted(layers.references, layers.step)
                np.testing.assert_array_equal(y[0, :40], wanted)
        sent = np.abs(layers.references[:k] * layers.step - values).max()
        assert sent <= 0.3 * 1.5 * np.sqrt(np.square(values).mean())


@every_isa
def test_what_is_too_far_is_sent_later(isa: str) -> None:
    k = 33
    x = np.full((1, k), 0.01, np.float32)
    with Memory() as memory:
        layers = ChangedLayers(
            memory, isa, small("q8", [20], k, np.random.default_rng(1)), np.ones(k, np.float32), 2, 0.0
        )
        layers.row(reference.quantize(x))
        far = reference.quantize(-x * 1e4)
        before = layers.references
        layers.row(far)
        assert (np.abs(layers.references - before)[:k] == 127 * 128).all()
        for _ in range(200):
            layers.row(far)
        np.testing.assert_array_equal(layers.references[:k], np.rint(far.values()[0, :k] / layers.step))


@every_isa
@pytest.mark.parametrize("refresh", [0, 3])
def test_it_is_computed_afresh_in_time(isa: str, refresh: int) -> None:
    """With all inputs as they are, and another step."""
    rng = np.random.default_rng(2)
    with Memory() as memory:
        layers = ChangedLayers(
            memory, isa, small("q4", [20], 64, rng), np.ones(64, np.float32), 3, 0.5, REFRESH=refresh
        )
        steps = []
        for position in range(10, 17):
            x = reference.quantize(floats("normal", (1, 64), rng) * np.float32(4.0 ** (position - 10)))
            layers.row(x, position)
            steps.append(layers.step)
            if refresh and (position - 10) % refresh == 0:
                np.testing.assert_array_equal(layers.references, np.rint(x.values()[0] / layers.step))
        assert [b != a for a, b in itertools.pairwise(steps)] == [
            refresh > 0 and (i + 1) % refresh == 0 for i in range(6)
        ]


@every_isa
@pytest.mark.parametrize("fmt", ["q4", "q4m", "q8"])
def test_where_too_much_has_changed_the_dense_layer_runs(isa: str, fmt: str) -> None:
    """And the state stays as it was, but for the rest that follows."""
    rng = np.random.default_rng(3)
    with Memory() as memory:
        made = small(fmt, [50, 20], 96, rng)
        layers = ChangedLayers(memory, isa, made, np.ones(96, np.float32), 2, 0.0, MOST=40)
        layers.row(reference.quantize(floats("normal", (1, 96), rng)))
        before = layers.state.copy()
        x = reference.quantize(floats("outliers", (1, 96), rng), 3.0)
        for y, n, stored in zip(layers.row(x, 1), made.rows, made.stored, strict=True):
            same_bits(y, run_quantised(isa, x, stored, n, 1))
        same_bits(layers.state[:32], before[:32])
        same_bits(layers.state[64:], before[64:])


@every_isa
@pytest.mark.parametrize("n_threads", THREADS)
def test_it_rests_longer_and_longer(isa: str, n_threads: int) -> None:
    """After rows of which too much has moved: 1, 3, 7, 15 rows are multiplied dense whatever they are, and none once it
    has not. What is sent then is what has moved since."""
    rng = np.random.default_rng(4)
    still = reference.quantize(floats("normal", (1, 64), rng))
    with Memory() as memory:
        made = small("q8", [30], 64, rng)
        layers = ChangedLayers(memory, isa, made, np.ones(64, np.float32), n_threads, 0.1, MOST=20)
        layers.row(still, 5)
        held = layers.references
        dense_rows = []
        for position in range(6, 60):
            x = still if position >= 40 else reference.quantize(floats("normal", (1, 64), rng))
            (y,) = layers.row(x, position)
            dense = run_quantised(isa, x, made.stored[0], 30, 1)
            dense_rows.append(np.array_equal(y, dense))
            np.testing.assert_array_equal(layers.references, held)
            if not dense_rows[-1]:
                np.testing.assert_array_equal(y[0, :30], layers.wanted(held, layers.step)[0])
        # looked at: 6, 8, 12, 20, 36, 52 and from there on each
        assert dense_rows == [position < 52 for position in range(6, 60)]


@every_isa
@examples(30)
@given(
    moved=st.lists(st.booleans(), min_size=1, max_size=40),
    first=st.integers(0, 9),
    n_threads=st.sampled_from(THREADS),
    seed=st.integers(0, 2**31),
)
def test_rests_are_the_twins(isa: str, moved: list[bool], first: int, n_threads: int, seed: int) -> None:
    """Whatever moves when: what is not looked at is multiplied dense, and changes nothing."""
    rng = np.random.default_rng(seed)
    still = reference.quantize(floats("normal", (1, 64), rng))
    rests = reference.Rests()
    with Memory() as memory:
        made = small("q4", [30], 64, rng)
        layers = ChangedLayers(memory, isa, made, np.ones(64, np.float32), n_threads, 0.01, MOST=20)
        layers.row(still, first)
        held = layers.references
        for position, moves in enumerate(moved, first + 1):
            x = reference.quantize(floats("normal", (1, 64), rng)) if moves else still
            (y,) = layers.row(x, position)
            np.testing.assert_array_equal(layers.references, held)
            looks = rests.looks(position)
            if looks:
                rests.looked(position, moves)
            if looks and not moves:
                np.testing.assert_array_equal(y[0, :30], layers.wanted(held, layers.step)[0])
            else:
                same_bits(y, run_quantised(isa, x, made.stored[0], 30, 1))
