"""Graphs of known operators that no kernels can run, or that say something else than edgerun.json: refused by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from edgerun.errors import PackageError
from edgerun.program.open import open_package
from tests.package import tiny
from tests.package.tiny import Parts, Shape
from tests.program.edits import NORM, add, attribute, drop, move, put, put_linear, put_norm, reads

AGAIN = "; export it again with `edgerun export`"
A0, M0, A1, M1 = "layers.0.attention", "layers.0.mlp", "layers.1.attention", "layers.1.mlp"


def second_embedding(parts: Parts) -> None:
    table = list(parts.node("embedding").input)[1:]
    put(parts, f"{A0}.q_proj", "EmbedQ8", ["input_ids", *table], "again", N=37, K=36)


def two_heads(parts: Parts) -> None:
    table = list(parts.node("embedding").input)[1:]
    put(parts, "output", "LinearQ8", ["final_norm", *table], "again", N=37, K=36)


def head_is_not_last(parts: Parts) -> None:
    add(parts, "more.weight", np.ones(37, np.float32))
    put(parts, None, "RMSNormalization", ["logits", "more.weight"], "more", **NORM)


def biased_head(parts: Parts) -> None:
    parts.node("output").output[0] = "scores"
    put(parts, None, "Add", ["scores", add(parts, "output.bias", np.ones(37, np.float32))], "sum")
    parts.node("sum").output[0] = "logits"


def head_without_a_norm(parts: Parts) -> None:
    drop(parts, "final_norm")
    reads(parts, "output", f"{M1}.residual")


def gated_twice(parts: Parts) -> None:
    put(parts, f"{M0}.down_proj", "SwiGLU", [f"{M0}.gate_proj", f"{M0}.up_proj"], "second")
    put(parts, f"{M0}.down_proj", "SwiGLU", [f"{M0}.swiglu", "second"], "third")
    reads(parts, f"{M0}.down_proj", "third")


def read_between_layer_and_sum(parts: Parts) -> None:
    """What a norm between a layer and its sum reads is the value before the sum, which the layer overwrites."""
    put_norm(parts, f"{A0}.residual", "embedding", "between")
    reads(parts, f"{M0}.up_proj", "between")


def read_after_the_sum(parts: Parts) -> None:
    put_norm(parts, f"{M0}.gate_proj", "embedding", "late")
    reads(parts, f"{M0}.gate_proj", "late")


def added_to_its_own_input(parts: Parts) -> None:
    put_linear(parts, "layers.0.input_norm", "embedding", "short")
    put(parts, "layers.0.input_norm", "Add", ["embedding", "short"], "sum")
    for node in ("layers.0.input_norm", f"{A0}.residual"):
        reads(parts, node, "sum")


def added_to_a_younger_value(parts: Parts) -> None:
    """Neither can be added in place: the norm's output is there only after the layer has run."""
    put_linear(parts, "layers.0.input_norm", "embedding", "short")
    put_norm(parts, "layers.0.input_norm", "embedding", "younger")
    put(parts, "layers.0.input_norm", "Add", ["younger", "short"], "sum")
    reads(parts, "layers.0.input_norm", "sum")


def norms_added(parts: Parts) -> None:
    put_norm(parts, f"{A0}.q_proj", "embedding", "other")
    put(parts, f"{A0}.q_proj", "Add", ["other", "layers.0.input_norm"], "sum")
    for role in ("q_proj", "k_proj", "v_proj"):
        reads(parts, f"{A0}.{role}", "sum")


def two_biases(parts: Parts) -> None:
    bias = add(parts, "again.bias", np.ones(24, np.float32))
    put(parts, f"{A0}.k_proj", "Add", [f"{A0}.q_proj.biased", bias], "again")
    reads(parts, A0, "again")


def bias_of_a_norm(parts: Parts) -> None:
    bias = add(parts, "again.bias", np.ones(36, np.float32))
    put(parts, f"{A0}.q_proj", "Add", ["layers.0.input_norm", bias], "again")
    reads(parts, f"{A0}.q_proj", "again")


def biased_and_plain(parts: Parts) -> None:
    """The layer's output without its bias would be lost."""
    put(parts, f"{M0}.down_proj", "SwiGLU", [f"{M0}.swiglu", f"{M0}.up_proj"], "again")
    reads(parts, f"{M0}.down_proj", "again")


def unequal_sum(parts: Parts) -> None:
    put_linear(parts, f"{A0}.k_proj", "layers.0.input_norm", "wide", 40)
    put(parts, f"{A0}.k_proj", "Add", ["wide", f"{A0}.q_proj"], "sum")
    reads(parts, A0, "sum")


def second_rope(parts: Parts) -> None:
    parts.model.graph.node.insert(2, parts.node("rope"))
    parts.model.graph.node[2].name = "rope2"
    parts.model.graph.node[2].output[:] = ["cos2", "sin2"]


def second_mask(parts: Parts) -> None:
    put(parts, "layers.0.input_norm", "CausalMask", ["position_ids", "past_key_values.0.key"], "mask2")


def many_nodes(parts: Parts) -> None:
    x = "layers.0.input_norm"
    for i in range(1000):
        x = put(parts, f"{A0}.q_proj", "RMSNormalization", [x, "layers.0.input_norm.weight"], f"norm{i}", **NORM)
    reads(parts, f"{A0}.q_proj", x)


def layers_out_of_order(parts: Parts) -> None:
    for node, layer in ((A0, 1), (A1, 0)):
        parts.node(node).input[6:] = [f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"]
        parts.node(node).output[1:] = [f"present.{layer}.key", f"present.{layer}.value"]


def a_layer_too_many(parts: Parts) -> None:
    parts.config["n_layers"] = 3
    graph = parts.model.graph
    for values, name in ((graph.input, "past_key_values"), (graph.output, "present")):
        for part in ("key", "value"):
            values.append(helper.make_tensor_value_info(f"{name}.2.{part}", 1, ["batch", 2, "length", 6]))


def foreign_scales(parts: Parts) -> None:
    name = f"{A0}.q_proj.weight.d"
    parts.initializer(name).name = "other.d"
    parts.node(f"{A0}.q_proj").input[2] = "other.d"


def shared_rows(parts: Parts) -> None:
    """Two layers of one matrix, one of which leaves its last row out: padding makes them as large."""
    parts.node(f"{M0}.gate_proj").input[1:] = list(parts.node(f"{M0}.up_proj").input)[1:]
    attribute(parts, f"{M0}.gate_proj", "N").i = 49


def tensor_like_an_input(parts: Parts) -> None:
    parts.initializer("final_norm.weight").name = "input_ids"
    parts.node("final_norm").input[1] = "input_ids"


GRAPHS: list[tuple[Callable[[Parts], object], str]] = [
    (second_embedding, "node 'again' is a second embedding, of which a package has one"),
    (second_rope, "node 'rope2' is a second table of rotary embeddings"),
    (second_mask, "node 'mask2' is a second mask"),
    (two_heads, "no kernel for node 'output': its input must be a norm's output that nothing else reads"),
    (head_without_a_norm, "no kernel for node 'output': its input must be a norm's output"),
    (head_is_not_last, "node 'more' gives 'more', expected 'logits'"),
    (biased_head, "no kernel for node 'output': the logits must be the output of a linear layer without a sum"),
    (lambda p: reads(p, f"{A0}.residual", "embedding", "embedding"), f"no kernel for node '{A0}.residual': one input"),
    (lambda p: reads(p, f"{M0}.swiglu", f"{M0}.up_proj"), f"no kernel for node '{M0}.swiglu': it takes a value for"),
    (gated_twice, f"no kernel for node 'second': it reads '{M0}.gate_proj', in whose place node '{M0}.swiglu' puts"),
    (read_between_layer_and_sum,
     f"no kernel for node 'between': it reads 'embedding', in whose place node '{A0}.residual' puts its output"),
    (read_after_the_sum, f"no kernel for node 'late': it reads 'embedding', in whose place node '{A0}.residual'"),
    (added_to_its_own_input, "no kernel for node 'sum': one input must be a linear layer's output"),
    (added_to_a_younger_value, "no kernel for node 'sum': one input must be a linear layer's output"),
    (norms_added, "no kernel for node 'sum': one input must be a linear layer's output"),
    (bias_of_a_norm, "no kernel for node 'again': a bias must follow a linear layer"),
    (unequal_sum, "node 'sum' adds 24 features to 40"),
    (many_nodes, "has 1031 nodes, expected at most 192: n_layers is 2 in edgerun.json"),
    (layers_out_of_order, f"node '{A0}' reads 'past_key_values.1.key', expected 'past_key_values.0.key'"),
    (a_layer_too_many, "has 2 Attention nodes, but n_layers is 3 in edgerun.json"),
    (lambda p: reads(p, "layers.0.input_norm", f"{M1}.residual"),
     f"node 'layers.0.input_norm' reads '{M1}.residual', which no node before it gives"),
    (lambda p: reads(p, "layers.0.input_norm", "layers.0.input_norm"), "which no node before it gives"),
    (lambda p: move(p, "output", "final_norm"), "node 'output' reads 'final_norm', which no node before it gives"),
    (lambda p: setattr(attribute(p, A1, "n_heads"), "i", 2), f"node '{A1}' has n_heads 2, expected 4"),
    (lambda p: setattr(attribute(p, A1, "n_kv_heads"), "i", 4), f"node '{A1}' has n_kv_heads 4, expected 2"),
    (lambda p: setattr(attribute(p, f"{A0}.k_proj", "N"), "i", 1 << 40), "has N 1099511627776, expected 1 to 16777216"),
    (lambda p: setattr(attribute(p, f"{A0}.k_proj", "N"), "i", -16), "has N -16, expected 1 to 16777216"),
    (lambda p: setattr(attribute(p, f"{A0}.k_proj", "K"), "i", 0), f"node '{A0}.k_proj' has K 0, expected 36"),
    (lambda p: setattr(attribute(p, "output", "N"), "i", 36), "uses weight 'embedding.weight' of another shape"),
    (lambda p: reads(p, "layers.0.input_norm", "mask"), "reads 'mask', which is a mask, expected features"),
    (lambda p: reads(p, A0, "rope.cos"), f"node '{A0}' reads 'rope.cos', which is cosines, expected features"),
    (lambda p: p.node(A0).input.__setitem__(3, "rope.sin"), "reads 'rope.sin', which is sines, expected cosines"),
    (lambda p: p.node(A0).input.__setitem__(5, "embedding"), "reads 'embedding', which is features, expected a mask"),
    (lambda p: reads(p, "layers.0.input_norm", "input_ids"), "reads 'input_ids', which no node before it gives"),
    (lambda p: reads(p, "layers.0.input_norm", "past_key_values.0.key"), "which no node before it gives"),
    (lambda p: reads(p, A1, "present.0.key"), "reads 'present.0.key', which no node before it gives"),
    (lambda p: reads(p, f"{A0}.residual", "embedding", "ghost"), "reads 'ghost', which no node before it gives"),
    (lambda p: put_norm(p, f"{A0}.q_proj", "embedding", "idle"), "node 'idle' gives 'idle', which no node reads"),
    (foreign_scales, f"node '{A0}.q_proj' reads tensor 'other.d', expected '{A0}.q_proj.weight.d'"),
    (shared_rows, "of another shape than a node before it"),
    (tensor_like_an_input, "tensor 'input_ids' has the name of a graph input"),
]  # fmt: skip
BIASED: list[tuple[Callable[[Parts], object], str]] = [
    (two_biases, "no kernel for node 'again': a bias must follow a linear layer whose output nothing else reads"),
    (
        biased_and_plain,
        f"node '{M0}.up_proj.biased': a bias must follow a linear layer whose output nothing else reads",
    ),
]


def refused(folder: Path) -> str:
    with pytest.raises(PackageError) as caught:
        open_package(folder)
    found = str(caught.value)
    assert "\n" not in found
    assert found.startswith(f"{folder / 'model.onnx'}: ")
    assert found.endswith(AGAIN)
    return found


@pytest.mark.parametrize(("change", "message"), GRAPHS, ids=[f"{i}-{m[:50]}" for i, (_, m) in enumerate(GRAPHS)])
def test_graphs(tmp_path: Path, change: Callable[[Parts], object], message: str) -> None:
    assert message in refused(tiny.make(tmp_path, change=change))


@pytest.mark.parametrize(("change", "message"), BIASED, ids=[change.__name__ for change, _ in BIASED])
def test_biases(tmp_path: Path, change: Callable[[Parts], object], message: str) -> None:
    assert message in refused(tiny.make(tmp_path, Shape(biases=True), change))


def test_a_separate_head_of_too_few_rows(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path, Shape(tied=False), lambda p: setattr(attribute(p, "output", "N"), "i", 36))
    assert "node 'output' has N 36 and K 36, expected 37 and 36" in refused(folder)


@pytest.mark.parametrize("first", [True, False])
def test_a_vector_is_as_positive_as_any_of_its_uses_wants(tmp_path: Path, first: bool) -> None:
    """A norm of 3 features shares its weight with the rotary frequencies, and may not make them negative."""

    def change(parts: Parts) -> None:
        put_linear(parts, f"{A0}.q_proj", "layers.0.input_norm", "narrow", 3)
        put(parts, f"{A0}.q_proj", "RMSNormalization", ["narrow", "rope.inv_freq"], "norm", **NORM)
        put_linear(parts, f"{A0}.q_proj", "norm", "wider", 36, 3)
        reads(parts, f"{A0}.q_proj", "wider")
        if first:
            move(parts, "rope", f"{A0}.q_proj")
        offset = next(int(e.value) for e in parts.initializer("rope.inv_freq").external_data if e.key == "offset")
        parts.data[offset : offset + 4] = np.float32(-1).tobytes()

    assert "has -1.0 at index 0, expected finite and positive numbers" in refused(tiny.make(tmp_path, change=change))
