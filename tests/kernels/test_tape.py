"""A tape's barriers: what all threads wrote is there for every thread of the next op."""

from __future__ import annotations

import numpy as np
import pytest

from edgerun.package import layout
from edgerun_kernels.machine import architecture
from edgerun_kernels.registry import Op

from .harness import Array, Memory, address, every_isa, linear_op, same_bits, stride, tape, team

WIDTH = 128


def permutations(memory: Memory, ops: int, rows: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """A chain of linear layers that each permute their input: (tape, first input, last output, what it must be)."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, WIDTH)).astype(np.float32)
    buffers = [memory.hold(x), memory.hold(np.zeros_like(x))]
    orders = [rng.permutation(WIDTH) for _ in range(4)]
    matrices = [layout.pack("f32", np.eye(WIDTH, dtype=np.float32)[order]) for order in orders]
    records = []
    wanted = x
    for i in range(ops):
        source, target = buffers[i % 2], buffers[(i + 1) % 2]
        weights = matrices[i % 4]
        records.append(linear_op(memory, Op.LINEAR_F32, source, target, weights, WIDTH, WIDTH, BARRIER=1))
        wanted = wanted[:, orders[i % 4]]
    return tape(*records), buffers[0], buffers[ops % 2], wanted


@every_isa
@pytest.mark.parametrize("n_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("rows", [1, 5])
def test_every_op_sees_all_of_the_one_before(isa: str, n_threads: int, rows: int) -> None:
    """Any value read too early would end in another place: 200 permutations, each split between the threads."""
    with Memory() as memory:
        ops, first, last, wanted = permutations(memory, 200, rows, n_threads)
        x = first.copy()
        for _ in range(3):
            first[:] = x
            team(isa, n_threads).run(address(ops), len(ops), memory.run(N_ROWS=rows))
            same_bits(last, wanted)


@every_isa
def test_a_barrier_only_for_several_rows(isa: str) -> None:
    """Op by op: each thread normalises one row for itself (no barrier), and several rows wait for each other."""
    rng = np.random.default_rng(1)
    w = layout.pack("f32", rng.standard_normal((WIDTH, WIDTH)).astype(np.float32))
    results = {}
    for rows in (1, 6):
        x = rng.standard_normal((rows, WIDTH)).astype(np.float32)
        for n_threads in (1, 3):
            with Memory() as memory:
                held, middle = memory.hold(x), memory.room((max(rows, n_threads), WIDTH), np.float32)
                y = memory.room((rows, WIDTH), np.float32)
                norm = memory.op(
                    Op.RMS_NORM, BARRIER=2, X=held, X_STRIDE=stride(held), Y=middle, Y_STRIDE=stride(middle),
                    Y_PRIVATE=stride(middle), W=memory.hold(np.ones(WIDTH, np.float32)), K=WIDTH, EPSILON=1e-5,
                )  # fmt: skip
                private = stride(middle)
                product = linear_op(memory, Op.LINEAR_F32, middle, y, w, WIDTH, WIDTH, X_PRIVATE=private)
                ops = tape(norm, product)
                for _ in range(20):
                    y[:] = np.nan
                    team(isa, n_threads).run(address(ops), 2, memory.run(N_ROWS=rows))
                    same_bits(results.setdefault(rows, y.copy()), y)


@every_isa
@pytest.mark.parametrize("n_threads", [1, 3])
@pytest.mark.parametrize("rows", [1, 5])
def test_a_profile_counts_every_op(isa: str, n_threads: int, rows: int) -> None:
    """Each op's ticks grow with every run, and the results are the same as without. On ARM a tick may be longer than
    an op."""
    coarse = architecture() == "aarch64"
    with Memory() as memory:
        ops, first, last, wanted = permutations(memory, 20, rows, 6)
        x, profile = first.copy(), memory.room((2, len(ops)), np.int64)
        profile[:] = 0
        run = memory.run(N_ROWS=rows, PROFILE=profile)
        before = profile.copy()
        for _ in range(3):
            first[:] = x
            team(isa, n_threads).run(address(ops), len(ops), run)
            same_bits(last, wanted)
            assert (profile[0] >= before[0]).all() and profile[0].sum() > before[0].sum() and not profile[1].any()
            assert coarse or (profile[0] > before[0]).all()
            before = profile.copy()
        first[:] = x
        team(isa, n_threads).run(address(ops), len(ops), memory.run(N_ROWS=rows))
        same_bits(last, wanted)
        same_bits(profile, before)
