"""What is recorded is what the runtime's attention computes with."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest

from edgerun import Model
from edgerun.calibration.capture import Capture
from edgerun.calibration.output import OutputProjection
from edgerun_kernels.layouts import Attention, Head
from edgerun_kernels.record import Run
from edgerun_kernels.reference import attention
from edgerun_kernels.registry import Op
from tests.package import tiny

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, 330)]


@pytest.mark.parametrize("cache", ["f16", "q8", "f32"])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_attention_of_what_is_recorded(package: Path, cache: str, threads: int) -> None:
    positions = np.array([0, 5, 255, 256, 300, 329])
    with Model(package, threads=threads, cache=cache, compute="int16") as model:  # type: ignore[arg-type]
        capture = Capture(model, TOKENS, positions)
        outputs: dict[int, np.ndarray] = {}
        ops = model.tape.ops
        gathers = [i for i, op in enumerate(ops) if op[Head.CODE] == Op.GATHER_ATTENTION]

        def read(run: np.ndarray, index: int) -> None:
            op, rows = ops[index], int(run[Run.N_ROWS])
            width, stride = int(op[Attention.N_HEADS] * op[Attention.HEAD_DIM]), int(op[Head.Y_STRIDE]) // 4
            address = int(run[Run.ARENA] + op[Head.Y])
            y = np.ctypeslib.as_array((ctypes.c_float * (rows * stride)).from_address(address))
            outputs[index] = y.reshape(rows, stride)[:, :width].copy()

        model.stops = {index + 1: lambda run, index=index: read(run, index) for index in gathers}
        session = model.session()
        session.prefill(TOKENS[:256])
        first = dict(outputs)
        session.prefill(TOKENS[256:])
        model.stops = {}
        for layer, index in enumerate(gathers):
            runtime = np.concatenate([first[index], outputs[index]])[positions]
            keys, values = capture.keys_values(layer)
            assert keys.shape[1] == capture.n_tokens == len(TOKENS)
            for row, position in enumerate(positions):
                q = capture.queries(layer)[row : row + 1]
                wanted = attention(q, keys[:, : position + 1], values[:, : position + 1], int(position)).ravel()
                np.testing.assert_allclose(runtime[row], wanted, rtol=0, atol=2e-2 * np.abs(wanted).max())


def test_stops_change_no_bit(package: Path) -> None:
    with Model(package, threads=2) as model:
        wanted = model.session().prefill(TOKENS).copy()
        calls: list[int] = []
        model.stops = dict.fromkeys(range(len(model.tape.ops)), lambda run: calls.append(int(run[Run.N_ROWS])))
        np.testing.assert_array_equal(model.session().prefill(TOKENS), wanted)
        assert sum(calls) == len(model.tape.ops) * len(TOKENS)


@pytest.mark.parametrize("shape", [tiny.Shape(), tiny.BITNET, tiny.Shape(linear="f32", head_dim=8)])
def test_output_projection(tmp_path: Path, shape: tiny.Shape) -> None:
    from edgerun.program.open import open_package

    package = open_package(tiny.make(tmp_path / "made", shape))
    projection = OutputProjection(package, 1)
    width = shape.n_heads * shape.head_dim
    x = np.random.default_rng(0).normal(0, 1, (3, width)).astype(np.float32)
    ones = np.eye(width, dtype=np.float32)
    rows = np.array([projection.energy(ones[i : i + 1], 0)[0] for i in range(width)])
    assert projection.energy(x, 0).shape == (3,) and (rows >= 0).all()
    part = np.zeros_like(x)
    part[:, 4:10] = x[:, 4:10]
    np.testing.assert_allclose(projection.energy(x[:, 4:10], 4), projection.energy(part, 0), rtol=1e-3)
    wanted = np.sqrt(np.square(x).mean(axis=1)) if shape.sub_norms else np.ones(3)
    np.testing.assert_allclose(projection.norm_scale(x), wanted, rtol=1e-5)
