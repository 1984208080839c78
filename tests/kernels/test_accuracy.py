"""What the vocabulary's conversions and functions are exact to, each through a kernel that uses it."""

from __future__ import annotations

import numpy as np

from edgerun_kernels import reference
from edgerun_kernels.record import (
    TILE_HEADER,
    activation_bytes,
    attention_scratch_bytes,
    kv_head_bytes,
    partials_bytes,
    row_activation_bytes,
)

from .harness import Array, Memory, address, call, every_isa, linear_op, loaded, same_bits, stride, within


@every_isa
def test_every_half_becomes_its_float(isa: str) -> None:
    """All 65,536 as scales of weights of 1; infinities stay, NaN stays some NaN."""
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    ones = np.zeros((4096, 1, 8, 16, 4), np.int8)
    ones[:, :, 0, :, 0] = 1
    weights = {"q": ones, "d": halves.reshape(4096, 1, 16)}
    with Memory() as memory:
        y = memory.room((65536, 1), np.float32)
        op = linear_op(memory, "embed_q8", y, y, weights, 65536, 1)
        call(isa, "embed_q8", op, memory.run(N_ROWS=65536, TOKENS=memory.hold(np.arange(65536))))
        nan = np.isnan(halves)
        same_bits(y[~nan, 0], halves[~nan].astype(np.float32))
        assert np.isnan(y[nan]).all()


def hard_floats() -> Array:
    """Every finite half, the middle between it and the next, and the floats beside those; what over- and underflows."""
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    middles = np.append((halves[:-1] + halves[1:]) / 2, np.float32(65520))  # both exact in float32
    beside = [np.nextafter(middles, np.float32(to)) for to in (-np.inf, np.inf)]
    extremes = np.array([1e-45, 1e-40, 1e-20, 1e5, 1e30, 3.4e38, np.inf], np.float32)
    positive = np.concatenate([halves, middles, *beside, extremes]).astype(np.float32)
    return np.concatenate([positive, -positive])


@every_isa
def test_floats_become_the_nearest_half(isa: str) -> None:
    """Ties to even, subnormals kept, 65,520 and more infinite: as values that attention writes into a float16 cache."""
    heads, dim = 64, 128
    floats = hard_floats()
    rows = -(-len(floats) // (heads * dim))
    values = np.zeros((rows, heads * dim), np.float32)
    values.reshape(-1)[: len(floats)] = floats
    with Memory() as memory:
        page = memory.room((heads, kv_head_bytes("f16", dim)), np.uint8)
        q = memory.hold(np.zeros((rows, heads * dim), np.float32))
        v, y = memory.hold(values), memory.room((rows, heads * dim), np.float32)
        angle = memory.hold(np.zeros((rows, dim // 2), np.float32))
        private = attention_scratch_bytes(dim)
        op = memory.op(
            "attention_f16", Y=y, Y_STRIDE=stride(y), Q=q, KEY=q, VALUE=v, Q_STRIDE=stride(q), KV_STRIDE=stride(v),
            N_HEADS=heads, N_KV_HEADS=heads, HEAD_DIM=dim, KV_HEAD_BYTES=stride(page), SCALE=1.0,
            SCRATCH=memory.room((private,), np.uint8), SCRATCH_PRIVATE=private,
            PARTIALS=memory.room((partials_bytes(heads, dim, rows),), np.uint8),
        )  # fmt: skip
        table = memory.hold(np.array([address(page)]))
        assert 1 < rows <= reference.PAGE
        call(isa, "attention_f16", op, memory.run(N_ROWS=rows, PAGES=table, COS=angle, SIN=angle))
        written = reference.unpack_page("f16", page, dim)[1][:, :rows]
        with np.errstate(over="ignore"):
            same_bits(written.transpose(1, 0, 2).reshape(rows, -1), values.astype(np.float16).astype(np.float32))


@every_isa
def test_exp_is_within_2e_7(isa: str) -> None:
    """Of the logits that ``sample`` turns into weights, from 0 down to the clamp; exp(0) is 1 to the bit."""
    logits = np.append(np.float32(0), -np.geomspace(1e-7, 87, 20_000, dtype=np.float32))
    with Memory() as memory:
        held = memory.room((-(-len(logits) // 16) * 16,), np.float32)
        held[: len(logits)] = logits
        heap = memory.room((len(logits),), np.int32)
        loaded(isa).sample(address(held), len(logits), address(heap), 1.0, 0, 1.0, 0.0, 0.5)
        assert held[0] == 1
        exact = np.exp(logits.astype(np.float64))
        within(held[: len(logits)], exact, 2e-7 * exact)


@every_isa
def test_silu_over_its_whole_range(isa: str) -> None:
    """5e-7 from the mathematical function, plus what exp's clamp leaves: 1e-35, or a little of a huge negative."""
    x = np.arange(-100, 100, 1 / 64, dtype=np.float32)
    huge = np.array([1e30, -1e30, 0.0, -0.0], np.float32)
    gate = np.concatenate([x, huge])[None]
    with Memory() as memory:
        held, up = memory.rows(gate, 16), memory.rows(np.ones_like(gate), 16)
        op = memory.op("swiglu", X=held, UP=up, X_STRIDE=stride(held), N=gate.shape[1])
        call(isa, "swiglu", op, memory.run(N_ROWS=1), 3)
        exact = x.astype(np.float64) / (1 + np.exp(-x.astype(np.float64)))
        within(held[0, : len(x)], exact, 5e-7 * np.abs(exact) + 1e-35)
        within(held[0, len(x) : gate.shape[1]], np.array([1e30, 0, 0, 0]), np.array([1e24, 1e-7, 0, 0]))


@every_isa
def test_quantize_rounds_ties_to_even(isa: str) -> None:
    x = np.zeros((1, 32), np.float32)
    x[0, :9] = [127, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5, -126.5]
    for name, size in (("quantize", activation_bytes(32, 1)), ("quantize_rows", row_activation_bytes(32, 1))):
        with Memory() as memory:
            y = memory.room((1, size), np.uint8, gap=64)
            op = memory.op(name, X=memory.rows(x), Y=y, K=32, **({"THRESHOLD": np.inf} if name == "quantize" else {}))
            call(isa, name, op, memory.run(N_ROWS=1))
            assert y.view(np.int8)[0, TILE_HEADER : TILE_HEADER + 9].tolist() == [127, 0, 2, 2, 0, -2, -2, 126, -126]


@every_isa
def test_argmax_at_every_place(isa: str) -> None:
    """Also where all logits are near float32's lowest."""
    for n in (1, 15, 16, 17, 255, 256, 257, 513):
        with Memory() as memory:
            held = memory.room((-(-n // 16) * 16,), np.float32)
            for i in {0, n // 2, n - 1}:
                held[:n] = -3.4028e38
                held[i] = -3.4020e38
                assert loaded(isa).argmax(address(held), n) == i


@every_isa
def test_sampling_gives_every_token_its_share(isa: str) -> None:
    """Evenly spaced numbers, for each filter alone and all together."""
    logits = np.array([0.1, 2.0, -1.0, 1.5, 0.7, 1.5, -4.0], np.float32)
    steps = 1000
    for filters in ((0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.3), (4, 0.7, 0.1)):
        counts = np.zeros(len(logits))
        for i in range(steps):
            with Memory() as memory:
                held, heap = memory.room((16,), np.float32), memory.room((len(logits),), np.int32)
                held[: len(logits)] = logits
                chosen = loaded(isa).sample(address(held), 7, address(heap), 0.9, *filters, (i + 0.5) / steps)
            counts[chosen] += 1
        wanted = np.zeros(len(logits))
        choices = reference.sampling_choices(logits, 0.9, *filters)
        wanted[choices.ids] = choices.probabilities
        within(counts / steps, wanted, 2 / steps)
