"""Kernels of the attention policies against the papers' algorithms in numpy: runs and mixed keys (DeltaLLM), pages
(DELTA), and attention over what they leave, at every number of threads."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgerun.attention.delta import Delta, choose_pages, page_scores
from edgerun.attention.deltallm import STEP, DeltaLLM, delta_keys, references
from edgerun.attention.runs import Heads
from edgerun.attention.spec import Attention
from edgerun.attention.state import AttentionState
from edgerun.program.codes import COMPACT
from edgerun_kernels import reference
from edgerun_kernels.record import PAGE, LayerState, Mode, attention_scratch_bytes, kv_head_bytes, partials_bytes
from edgerun_kernels.registry import Op

from .harness import Array, Memory, every_isa, examples, same_bits, stride, tape, team, within
from .test_attention import OPS, angles, every_cache, pages


class Layer:
    """One layer's attention for one row after ``old`` positions, under policies."""

    def __init__(self, memory: Memory, cache: str, keys: Array, values: Array, group: int, policy: Attention) -> None:
        n_kv_heads, positions, dim = keys.shape
        self.cache, self.group, self.position = cache, group, positions
        self.memory, self.dim, self.n_kv_heads = memory, dim, n_kv_heads
        heads = Heads(1, n_kv_heads * group, n_kv_heads, dim, cache, -(-(positions + 1) // PAGE) * PAGE)
        self.state = AttentionState(heads, policy)
        self.pages = [memory.hold(page) for page in pages(cache, keys, values, positions + 1)]
        self.table = memory.hold(np.array([page.ctypes.data for page in self.pages], np.int64))

    def run(self, isa: str, n_threads: int, q: Array, k: Array, v: Array, mode: Mode, export: bool) -> Array:
        """Compacts, attends, gathers and chooses as the policies have it; the output [n_heads, dim]."""
        memory, dim, n_heads = self.memory, self.dim, self.n_kv_heads * self.group
        cos, sin = (memory.hold(part) for part in angles(self.position + 1, dim))
        x = [memory.hold(part.reshape(1, -1), gap=64) for part in (q, k, v)]
        y = memory.room((n_threads, n_heads * dim), np.float32, gap=64)
        scratch_bytes = attention_scratch_bytes(dim)
        scratch = memory.room((n_threads, scratch_bytes), np.uint8, gap=64 + -scratch_bytes % 64)
        fields: dict[str, Any] = {
            "Y": y, "Y_STRIDE": stride(y), "Y_PRIVATE": stride(y), "Q": x[0], "KEY": x[1], "VALUE": x[2],
            "Q_STRIDE": stride(x[0]), "KV_STRIDE": stride(x[1]), "N_HEADS": n_heads, "N_KV_HEADS": self.n_kv_heads,
            "HEAD_DIM": dim, "KV_HEAD_BYTES": kv_head_bytes(self.cache, dim), "SCALE": float(dim**-0.5),
            "PARTIALS": memory.room((partials_bytes(n_heads, dim, 1) // 4,), np.float32),
            "SCRATCH": scratch, "SCRATCH_PRIVATE": stride(scratch),
        }  # fmt: skip
        self.state.records[:, LayerState.MODE], self.state.records[:, LayerState.EXPORT] = mode, export
        ops = [
            memory.op(OPS[self.cache], BARRIER=1, **fields),
            memory.op(Op.GATHER_ATTENTION, **fields),
        ]
        if mode == Mode.RUNS:
            ops.insert(0, memory.op(COMPACT[self.cache], **fields))
        if export:
            ops.append(memory.op(Op.SELECT_PAGES, **fields))
        whole = tape(*ops)
        run = memory.run(
            N_ROWS=1, POSITION=self.position, PAGES=self.table, COS=cos, SIN=sin,
            ATTENTION=self.state.records,
        )  # fmt: skip
        team(isa, n_threads).run(int(whole.ctypes.data), len(whole), run)
        for copy in y[1:]:
            same_bits(copy, y[0])
        return y[0].reshape(n_heads, dim).copy()


class Row(NamedTuple):
    """Old keys (alike from token to token) and values [n_kv_heads, T, dim], and a row's q, k, v."""

    keys: Array
    values: Array
    q: Array
    k: Array
    v: Array

    @classmethod
    def make(cls, position: int, n_kv_heads: int, group: int, dim: int, alike: float, seed: int) -> Row:
        rng = np.random.default_rng(seed)
        steps = rng.standard_normal((n_kv_heads, position, dim)) * (1 - alike)
        moved = rng.random((n_kv_heads, position, 1)) < 0.2
        keys = np.where(moved, rng.standard_normal(steps.shape), 0).cumsum(1) * 0.5 + steps + 1
        shapes = (n_kv_heads, position, dim), (n_kv_heads * group, dim), (n_kv_heads, dim), (n_kv_heads, dim)
        values, q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in shapes)
        return cls(keys.astype(np.float16).astype(np.float32), values, q, k, v)


def attention_of(q: Array, keys: Array, values: Array, bias: Array) -> Array:
    """One row of one head in float64: q [group, dim] over keys, values [n, dim], bias [n] added to the scores."""
    scores = q.astype(np.float64) @ keys.astype(np.float64).T + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    result: Array = p / p.sum(1, keepdims=True) @ values.astype(np.float64)
    return result


def clear_of(keys: Array, theta: float, sinks: int) -> bool:
    """Whether no token is so near to the limit that float32 sums in another order could decide otherwise."""
    for head in keys if keys.shape[1] else ():
        at = head[0]
        for t in range(1, len(head)):
            moved, limit = (
                np.square(head[t] - at, dtype=np.float64).sum(),
                theta**2 * np.square(at, dtype=np.float64).sum(),
            )
            if t > sinks and abs(moved - limit) < 1e-4 * limit:
                return False
            if t <= sinks or moved >= limit:
                at = head[t]
    return True


@every_isa
@every_cache
@examples(60)
@given(
    position=st.sampled_from([128, 255, 256, 300, 384, 515, 640]),
    heads=st.sampled_from([(1, 1), (2, 3), (3, 2), (1, 9)]),
    dim=st.sampled_from([6, 20, 32, 64, 80]),
    theta=st.sampled_from([0.0, 0.2, 0.5, 0.9, 5.0]),
    sinks=st.sampled_from([0, 1, 4, 200]),
    seed=st.integers(0, 2**31),
)
def test_runs(
    isa: str, cache: str, position: int, heads: tuple[int, int], dim: int, theta: float, sinks: int, seed: int
) -> None:
    """Which tokens share a key, their mean values, and attention over them; the same at every number of threads."""
    row = Row.make(position, *heads, dim, 0.9, seed)
    wanted_keys, _ = stored(cache, row)
    policy = DeltaLLM(np.full((1, heads[0]), theta, np.float32), window=128, sinks=sinks)
    exact = policy.exact_from(position)
    if not clear_of(wanted_keys[:, :exact], theta, sinks):
        return
    outputs = []
    for n_threads in (1, 2, 3):
        with Memory() as memory:
            layer = Layer(memory, cache, row.keys, row.values, heads[1], Attention("", policy))
            compact_up_to(layer, isa, n_threads, row, exact)
            outputs.append(layer.run(isa, n_threads, row.q, row.k, row.v, Mode.RUNS, False))
            runs = layer.state.runs
            assert runs is not None
            sent = references(wanted_keys[:, :exact], policy.theta[0], sinks) if exact else np.ones((heads[0], 0), bool)
            np.testing.assert_array_equal(runs.counts[0], sent.sum(1))
            after = [reference.unpack_page(cache, page, dim) for page in layer.pages]
    keys, values = (np.concatenate([page[i] for page in after], 1)[:, : position + 1] for i in (0, 1))
    cos, sin = (table[position:] for table in angles(position + 1, dim))
    q = reference.rope(row.q[None], cos, sin, dim**-0.5)[0].reshape(heads[0], heads[1], dim)
    for head in range(heads[0]):
        starts = np.flatnonzero(sent[head])
        lengths = np.diff([*starts, exact])
        means = (
            np.add.reduceat(values[head, :exact].astype(np.float64), starts, 0) / lengths[:, None] if exact else None
        )
        some_keys = np.concatenate([keys[head, starts], keys[head, exact:]])
        some_values = values[head, exact:] if means is None else np.concatenate([means, values[head, exact:]])
        bias = np.concatenate([np.log(lengths), np.zeros(position + 1 - exact)])
        expected = attention_of(q[head], some_keys, some_values, bias)
        got = outputs[0].reshape(heads[0], heads[1], dim)[head]
        within(got, expected, {"f16": 4e-3, "f32": 2e-4, "q8": 4e-2}[cache] * np.abs(values[head]).max())
    for other in outputs[1:]:
        same_bits(other, outputs[0])


def stored(cache: str, row: Row) -> tuple[Array, Array]:
    """The old keys and values as the cache has them."""
    held = [
        reference.unpack_page(cache, page, row.q.shape[1])
        for page in pages(cache, row.keys, row.values, row.keys.shape[1])
    ]
    keys, values = (np.concatenate([page[i] for page in held], 1)[:, : row.keys.shape[1]] for i in (0, 1))
    return keys, values


def compact_up_to(layer: Layer, isa: str, n_threads: int, row: Row, exact: int) -> None:
    """Step by step, as sessions do; the last step is left to the run that is tested."""
    runs = layer.state.runs
    assert runs is not None
    position = layer.position
    for step in range(STEP, exact, STEP):
        layer.position = step + runs.policy.window // STEP * STEP
        layer.state.before(layer.position, 1)
        same = [page.copy() for page in layer.pages]
        layer.run(isa, n_threads, row.q, row.k, row.v, Mode.RUNS, False)
        for page, before in zip(layer.pages, same, strict=True):
            page[:] = before
        layer.state.after(layer.position, 1)
    layer.position = position
    layer.state.before(position, 1)


@every_isa
@every_cache
@pytest.mark.parametrize("theta", [0.0, 0.3, 100.0])
def test_elements(isa: str, cache: str, theta: float) -> None:
    """Keys of old and new elements, and how many are new."""
    row = Row.make(300, 2, 2, 20, 0.7, 3)
    keys, _ = stored(cache, row)
    spread = np.abs(keys).mean(1)[None].astype(np.float32)
    policy = DeltaLLM(np.full((1, 2), theta, np.float32), 128, 4, "element", spread)
    exact = policy.exact_from(300)
    with Memory() as memory:
        layer = Layer(memory, cache, row.keys, row.values, 2, Attention("", policy))
        compact_up_to(layer, isa, 2, row, exact)
        layer.run(isa, 2, row.q, row.k, row.v, Mode.RUNS, False)
        layer.state.after(300, 1)
        runs = layer.state.runs
        assert runs is not None
        expected, sent = delta_keys(keys[:, :exact], policy.theta[0], spread[0], 4)
        assert (runs.counts == exact).all()
        assert abs(int(runs.elements.sum()) - int(sent.sum())) <= (0 if cache != "q8" else sent.size // 20)
        block = np.frombuffer(ctypes.string_at(int(runs.blocks[0, 1, 3]), runs.entry_bytes), np.uint8)
        page = np.zeros((1, kv_head_bytes(cache, 20)), np.uint8)
        size = page.size // (PAGE // 16)
        page[0, :size] = block[:size]
        got = reference.unpack_page(cache, page, 20)[0][0, :16]
        within(got, expected[1, 48:64], 0.0 if cache != "q8" else 0.05 * np.abs(keys).max())


@every_isa
@every_cache
@examples(40)
@given(
    position=st.sampled_from([0, 5, 15, 16, 100, 255, 256, 400, 515]),
    heads=st.sampled_from([(1, 1), (2, 3), (3, 2), (1, 9)]),
    budget=st.sampled_from([1, 2, 5, 8, 20, 1000]),
    recent=st.sampled_from([1, 2, 8]),
    refresh=st.sampled_from([1, 2, 4, 17, 40]),
    seed=st.integers(0, 2**31),
)
def test_pages(
    isa: str, cache: str, position: int, heads: tuple[int, int], budget: int, recent: int, refresh: int, seed: int
) -> None:
    """The pages that numpy chooses from the same probabilities, and attention over them."""
    dim = 32
    row = Row.make(position, *heads, dim, 0.0, seed)
    policy = Attention("", None, Delta((), (0,), max(budget, recent), recent, refresh))
    with Memory() as memory:
        layer = Layer(memory, cache, row.keys, row.values, heads[1], policy)
        exact = layer.run(isa, 2, row.q, row.k, row.v, Mode.ALL, True)
        assert layer.state.selection is not None
        chosen = layer.state.selection.lists[0]
        got = chosen[1 : 1 + chosen[0]].copy()
        again = [layer.run(isa, n_threads, row.q, row.k, row.v, Mode.PAGES, False) for n_threads in (1, 2, 3)]
        layer.state.records[:, LayerState.HELD] = 1  # a layer whose choice stands reads that, and chooses nothing
        again += [layer.run(isa, n_threads, row.q, row.k, row.v, Mode.ALL, True) for n_threads in (1, 2, 3)]
        np.testing.assert_array_equal(chosen[1 : 1 + chosen[0]], got)
        after = [reference.unpack_page(cache, page, dim) for page in layer.pages]
    keys, values = (np.concatenate([page[i] for page in after], 1)[:, : position + 1] for i in (0, 1))
    cos, sin = (table[position:] for table in angles(position + 1, dim))
    q = reference.rope(row.q[None], cos, sin, dim**-0.5)[0].reshape(*heads, dim)
    scores = np.einsum("hgd,htd->hgt", q.astype(np.float64), keys).reshape(-1, position + 1)
    p = np.exp(scores - scores.max(1, keepdims=True))
    assert policy.delta is not None
    pages_wanted = page_scores((p / p.sum(1, keepdims=True)).astype(np.float32), policy.delta.ahead)
    best = choose_pages(pages_wanted, max(budget, recent), recent)
    assert len(got) == len(best)
    assert (np.diff(got) > 0).all()
    # Pages whose scores are the same but for rounding may stand for each other.
    left, taken = np.setdiff1d(best, got), np.setdiff1d(got, best)
    np.testing.assert_allclose(
        np.sort(pages_wanted[left]), np.sort(pages_wanted[taken]), rtol=0.02 if cache == "q8" else 1e-3
    )
    seen = np.isin(np.arange(position + 1) // 16, got)
    for head in range(heads[0]):
        expected = attention_of(q[head], keys[head, seen], values[head, seen], np.zeros(seen.sum()))
        within(again[0].reshape(*heads, dim)[head], expected, 2e-3 * np.abs(values).max())
    for other in again:
        same_bits(other, again[0])
        if seen.all():
            same_bits(other, exact)
