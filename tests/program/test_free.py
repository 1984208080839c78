"""Graphs of other forms than any exporter makes, which are sound: they give what onnxruntime gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from edgerun.program.encode import ALWAYS, Compute, encode
from edgerun.program.open import Package, open_package
from edgerun.program.ops import Linear
from edgerun.program.tape import Tape
from edgerun.sparsity.projections import projections
from edgerun_kernels.layouts import Head
from edgerun_kernels.registry import Op
from tests.package import tiny
from tests.package.tiny import BITNET, Parts, Shape
from tests.program.edits import drop, drop_tensor, move, put, put_linear, put_norm, reads
from tests.program.test_logits import edgerun_logits, onnxruntime_logits

A0, M0 = "layers.0.attention", "layers.0.mlp"


def tables_first(parts: Parts) -> None:
    move(parts, "rope", "embedding")


def norm_of_a_norm(parts: Parts) -> None:
    put_norm(parts, "final_norm", "layers.1.mlp.residual", "before")
    reads(parts, "final_norm", "before")
    put_norm(parts, f"{A0}.q_proj", "layers.0.input_norm", "again")
    reads(parts, f"{A0}.q_proj", "again")


def parallel_blocks(parts: Parts) -> None:
    """Attention and MLP of the same norm."""
    for role in ("gate_proj", "up_proj"):
        reads(parts, f"{M0}.{role}", "layers.0.input_norm")
    drop(parts, "layers.0.post_attention_norm")
    drop_tensor(parts, "layers.0.post_attention_norm.weight")


def norm_linear_sum(parts: Parts) -> None:
    """A layer that adds to what a norm has just read, with nothing between."""
    put_norm(parts, "layers.0.input_norm", "embedding", "before")
    put_linear(parts, "layers.0.input_norm", "before", "short")
    put(parts, "layers.0.input_norm", "Add", ["embedding", "short"], "sum")
    for node in ("layers.0.input_norm", f"{A0}.residual"):
        reads(parts, node, "sum")


def sums_the_other_way(parts: Parts) -> None:
    reads(parts, f"{A0}.residual", f"{A0}.o_proj", "embedding")


def linear_of_linear(parts: Parts) -> None:
    put_linear(parts, f"{A0}.q_proj", "layers.0.input_norm", "low", 20, 36)
    put_linear(parts, f"{A0}.q_proj", "low", "high", 36, 20, "f32")
    reads(parts, f"{A0}.q_proj", "high")


def norms_gated(parts: Parts) -> None:
    put_norm(parts, f"{M0}.swiglu", f"{M0}.gate_proj", "gate", 50)
    put_norm(parts, f"{M0}.swiglu", f"{M0}.up_proj", "up", 50)
    reads(parts, f"{M0}.swiglu", "gate", "up")


def read_and_gated(parts: Parts) -> None:
    """The gate's value is normalised by all threads before it is overwritten."""
    put_norm(parts, f"{M0}.swiglu", f"{M0}.gate_proj", "up", 50)
    put(parts, f"{M0}.swiglu", "SwiGLU", [f"{M0}.gate_proj", f"{M0}.up_proj"], "first")
    reads(parts, f"{M0}.swiglu", "up", "first")


def normed_residual(parts: Parts) -> None:
    """The residual stream starts with a norm, of which every thread has a copy."""
    put_norm(parts, "layers.0.input_norm", "embedding", "start")
    for node in ("layers.0.input_norm", f"{A0}.residual"):
        reads(parts, node, "start")


def two_layers_summed(parts: Parts) -> None:
    put_linear(parts, f"{M0}.up_proj", "layers.0.post_attention_norm", "second", 50)
    put(parts, f"{M0}.up_proj", "Add", [f"{M0}.gate_proj", "second"], "sum")
    put_linear(parts, f"{M0}.up_proj", "layers.0.post_attention_norm", "third", 50, 36, "f32")
    put(parts, f"{M0}.up_proj", "Add", ["third", "sum"], "sums")
    reads(parts, f"{M0}.swiglu", "sums")


def late_sum(parts: Parts) -> None:
    """Another layer runs between a layer and its sum."""
    put_linear(parts, f"{A0}.residual", "layers.0.input_norm", "between")
    put(parts, "layers.0.post_attention_norm", "Add", [f"{A0}.residual", "between"], "sum")
    for node in ("layers.0.post_attention_norm", f"{M0}.residual"):
        reads(parts, node, "sum")


def keys_for_values(parts: Parts) -> None:
    reads(parts, A0, f"{A0}.q_proj", f"{A0}.k_proj", f"{A0}.k_proj")
    drop(parts, f"{A0}.v_proj")
    for part in "qdm":
        drop_tensor(parts, f"{A0}.v_proj.weight.{part}")


def columns_after_each_other(parts: Parts) -> None:
    """Layers of two inputs in turn, one of which has the sparse layers' room while the other still wants it."""
    put_norm(parts, f"{A0}.q_proj", "layers.0.input_norm", "other")
    reads(parts, f"{A0}.k_proj", "other")


CHANGES = [
    tables_first, norm_of_a_norm, parallel_blocks, norm_linear_sum, sums_the_other_way, linear_of_linear, norms_gated,
    read_and_gated, normed_residual, two_layers_summed, late_sum, keys_for_values, columns_after_each_other,
]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("compute", ["float32", "int16"])
@pytest.mark.parametrize("change", CHANGES, ids=[change.__name__ for change in CHANGES])
def test_logits(tmp_path: Path, change: Callable[[Parts], None], compute: Compute, threads: int) -> None:
    shape = Shape()
    folder = tiny.make(tmp_path, shape, change)
    wanted = onnxruntime_logits(folder, shape)
    got = edgerun_logits(folder, shape, compute, threads)
    error = np.abs(got - wanted).max() / np.abs(wanted).max()
    assert error < (2e-5 if compute == "float32" else 5e-3)


def encoded(package: Package, compute: Compute = "int16") -> Tape:
    return encode(package.program, package.tensor, n_threads=2, compute=compute, cache="f32", max_rows=4)


@pytest.mark.parametrize("compute", ["float32", "int16"])
def test_threads_meet_before_a_layer_overwrites_what_others_read(tmp_path: Path, compute: Compute) -> None:
    tape = encoded(open_package(tiny.make(tmp_path, change=norm_linear_sum)), compute)
    at = tape.names.index("short")
    norm = tape.names.index("before")
    assert (tape.ops[norm:at, Head.BARRIER] == ALWAYS).any()


def test_threads_meet_before_a_gate_overwrites_what_others_read(tmp_path: Path) -> None:
    tape = encoded(open_package(tiny.make(tmp_path, change=read_and_gated)))
    assert tape.ops[tape.names.index("first") - 1, Head.BARRIER] == ALWAYS


def test_columns_are_not_skipped_where_inputs_take_turns(tmp_path: Path) -> None:
    def names(change: Callable[[Parts], None] | None) -> list[str]:
        folder = tiny.make(tmp_path / str(change is None), change=change)
        return [projection.name for projection in projections(encoded(open_package(folder)))]

    whole = names(None)
    assert whole[:4] == [f"layers.0.{kind}" for kind in ("qkv", "attention_output", "gate_up", "down")]
    assert names(columns_after_each_other) == whole[1:]


@pytest.mark.parametrize("shape", [Shape(biases=True), BITNET], ids=["biases", "ternary"])
def test_the_program(tmp_path: Path, shape: Shape) -> None:
    package = open_package(tiny.make(tmp_path, shape))
    program = package.program
    assert (program.n_layers, program.n_heads, program.n_kv_heads, program.head_dim) == (2, 4, 2, 6)
    assert program.rotary.name == "rope.inv_freq"
    assert [op.name for op in program.ops if isinstance(op, Linear) and op.head] == ["output"]
    layers = [op for op in program.ops if isinstance(op, Linear) and op.name.startswith("layers.0.")]
    assert [op.residual for op in layers if op.residual] == ["embedding", f"{A0}.residual"]
    assert [op.bias is not None for op in layers] == [shape.biases] * 7
    tensors = {name for w in program.weights.values() for name in (getattr(w, "tensors", {"": w.name}).values())}
    assert tensors == {tensor.name for tensor in package.graph.initializer}
    tape = encoded(package)
    assert [one.op for one in tape.encoded] == list(program.ops)
    alone = sum(len(one.records) for one in tape.encoded)
    hooks = sum(op[Head.CODE] == Op.SKIP_COLUMNS for op in tape.ops)
    assert alone + hooks + len({one.quantised for one in tape.encoded} - {None}) == len(tape.ops)
