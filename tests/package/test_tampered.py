"""Every way in which a package can be wrong: one line that says which file, what, and what to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from edgerun.errors import PackageError
from edgerun.package import operators
from edgerun.program.open import open_package
from tests.package import tiny
from tests.package.tiny import Parts, Shape

AGAIN = "; export it again with `edgerun export`"
Change = Callable[[Parts], object]


def refused(folder: Path) -> str:
    """The message with which a package is refused, checked to be one line."""
    with pytest.raises(PackageError) as caught:
        open_package(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    assert "; " in message, "it says what to do"
    return message.replace(str(folder) + os.sep, "")


# --- edgerun.json -----------------------------------------------------------------------------------------------------

CONFIG: list[tuple[str, Any, str]] = [
    ("format_version", "1", "field format_version is '1', expected 1"),
    ("format_version", 0, "field format_version is 0, expected 1"),
    ("format_version", True, "field format_version is True, expected 1"),
    ("family", "mamba", "field family is 'mamba', expected one of llama"),
    ("name", 7, "field name is 7, expected a text"),
    ("n_layers", 0, "field n_layers is 0, expected 1 to 4096"),
    ("n_layers", 2.0, "field n_layers is 2.0, expected a whole number"),
    ("n_layers", True, "field n_layers is True, expected a whole number"),
    ("hidden_size", -36, "field hidden_size is -36, expected 1 to 1048576"),
    ("vocab_size", 1 << 40, "field vocab_size is 1099511627776, expected 1 to 16777216"),
    ("context_length", 0, "field context_length is 0, expected 1 to 268435456"),
    ("head_dim", 7, "field head_dim is 7, expected an even number"),
    ("n_kv_heads", 3, "field n_heads is 4, no multiple of n_kv_heads 3"),
    ("rope_theta", 0, "field rope_theta is 0, expected a positive number"),
    ("rope_theta", 10**400, "expected a positive number"),
    ("rope_theta", None, "field rope_theta is None, expected a number"),
    ("rms_norm_eps", 1.5, "field rms_norm_eps is 1.5, expected 0 to 1"),
    ("tied_embeddings", 1, "field tied_embeddings is 1, expected true or false"),
    ("source", [], "field source is [], expected an object"),
    ("source", {"format": "gguf", "sha256": ""}, "field source names neither a file nor a repo"),
    ("source", {"file": "a", "format": "gguf"}, "field source.sha256 is no text"),
    ("quantisation", {"linear": "q4_1", "notes": []}, "field quantisation.embedding is no text"),
    ("quantisation", {"linear": "q4_1", "embedding": "q8_0", "notes": [1]}, "field quantisation.notes is no list"),
    ("calibration", None, "field calibration is None, expected an object"),
    # consistent in itself, but not with the graph
    ("n_layers", 3, "has 6 graph inputs, expected 8: n_layers is 3 in edgerun.json"),
    ("n_layers", 1, "has 6 graph inputs, expected 4: n_layers is 1 in edgerun.json"),
    ("hidden_size", 32, "node 'embedding' has K 36, expected 32"),
    ("vocab_size", 38, "graph output 'logits' has element type 1 and shape [?, ?, 37], expected 1 and [?, ?, 38]"),
    (
        "intermediate_size",
        51,
        "node 'layers.0.mlp.swiglu' gives 50 features, but intermediate_size is 51",
    ),
    ("n_heads", 6, "node 'layers.0.attention' has n_heads 4, expected 6"),
    ("head_dim", 8, "graph input 'past_key_values.0.key' has element type 1 and shape [?, 2, ?, 6]"),
    ("rms_norm_eps", 1e-6, "node 'layers.0.input_norm' has epsilon 1e-05, but rms_norm_eps is 1e-06 in edgerun.json"),
    ("tied_embeddings", False, "node 'output' shares the embedding's tensors, but tied_embeddings is false"),
]


@pytest.mark.parametrize(("name", "value", "message"), CONFIG)
def test_config(tmp_path: Path, name: str, value: Any, message: str) -> None:
    found = refused(tiny.make(tmp_path, change=lambda p: p.config.update({name: value})))
    assert message in found
    assert found.startswith(("edgerun.json: ", "model.onnx: "))
    assert found.endswith(AGAIN)


@pytest.mark.parametrize("name", list(tiny.build().config))
def test_config_without_a_field(tmp_path: Path, name: str) -> None:
    found = refused(tiny.make(tmp_path, change=lambda p: p.config.pop(name)))
    assert "format_version is None" in found if name == "format_version" else f"field {name} is missing" in found


def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path) -> None:
    def newer(parts: Parts) -> None:
        parts.config = {"format_version": 2, "everything": "else is new"}

    found = refused(tiny.make(tmp_path, change=newer))
    assert found == (
        "edgerun.json: the package has format version 2, this edgerun reads up to 1; "
        "upgrade edgerun (pip install --upgrade edgerun)"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b'{"format_version": 1', "is not valid JSON"),
        (b"\xff\xfe{", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds no JSON object"),
        (b'{"format_version": NaN}', "NaN is no number"),
        (b'{"format_version": ' + b"9" * 5000 + b"}", "is not valid JSON"),
    ],
)
def test_config_that_is_no_json(tmp_path: Path, content: bytes, message: str) -> None:
    folder = tiny.make(tmp_path)
    (folder / "edgerun.json").write_bytes(content)
    assert message in refused(folder)


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_a_file_is_missing_or_a_folder(tmp_path: Path, name: str) -> None:
    folder = tiny.make(tmp_path)
    (folder / name).unlink()
    assert refused(folder) == f"{name}: is missing{AGAIN}"
    (folder / name).mkdir()
    assert refused(folder) == f"{name}: is no regular file{AGAIN}"


def test_no_package_at_all(tmp_path: Path) -> None:
    assert "is no model package, it has no edgerun.json; make one with `edgerun export`" in refused(tmp_path)
    assert "no such folder" in refused(tmp_path / "none")
    (tmp_path / "file").touch()
    assert "is no model package but a file" in refused(tmp_path / "file")


def test_model_cut_short_or_garbage(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path)
    path = folder / "model.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    assert refused(folder) == f"model.onnx: is no ONNX model, or cut short ({len(whole) - 7} bytes){AGAIN}"
    path.write_bytes(np.random.default_rng(0).bytes(5000))
    assert "is no ONNX model" in refused(folder)
    path.write_bytes(b"")
    assert "holds no graph" in refused(folder)
    with path.open("wb") as file:
        file.truncate(300 << 20)
    assert "expected at most 268435456" in refused(folder)


def test_data_missing_or_cut_short(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path)
    path = folder / "model.onnx.data"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    found = refused(folder)
    assert re.search(rf"tensor '.*' ends at byte {size} of 'model.onnx.data', which has only {size - 1} bytes", found)
    os.truncate(path, 0)
    assert "which has only 0 bytes" in refused(folder)
    path.unlink()
    assert "model.onnx.data: cannot be read (No such file or directory), it holds tensor" in refused(folder)
    path.mkdir()
    assert "is no regular file" in refused(folder)
    path.rmdir()
    os.mkfifo(path)
    assert "is no regular file" in refused(folder)


# --- external data ----------------------------------------------------------------------------------------------------

EXTERNAL: list[tuple[str, str | None, str]] = [
    ("location", "/etc/passwd", "is in '/etc/passwd', not inside the package's folder"),
    ("location", "../model.onnx.data", "is in '../model.onnx.data', not inside the package's folder"),
    ("location", "a/../../x", "not inside the package's folder"),
    ("location", "C:\\weights", "not inside the package's folder"),
    ("location", "\\\\server\\weights", "not inside the package's folder"),
    ("location", "C:weights", "not inside the package's folder"),
    ("location", "a\0b", "is in 'a?b', not inside the package's folder"),
    ("location", "", "is in '', not inside the package's folder"),
    ("location", None, "is in '', not inside the package's folder"),
    ("location", "link", "is in 'link', not inside the package's folder"),
    ("location", "loop", "not inside the package's folder"),
    ("location", "linked/data", "not inside the package's folder"),
    ("offset", None, "has external offset '', expected a number of bytes"),
    ("offset", "-64", "has external offset '-64', expected a number of bytes"),
    ("offset", "0x40", "has external offset '0x40', expected a number of bytes"),
    ("offset", "٣٢", "expected a number of bytes"),
    ("offset", "9" * 30, "expected a number of bytes"),
    ("offset", str(64 * 10**16), "which has only"),
    ("offset", "32", "is at offset 32, expected a multiple of 64"),
    ("length", None, "has external length '', expected a number of bytes"),
    ("length", "1", "has external length 1, its shape takes 144 bytes"),
    ("length", "148", "has external length 148, its shape takes 144 bytes"),
    ("basepath", "/", "has the unknown field 'basepath' in external_data"),
]


@pytest.mark.parametrize(("key", "value", "message"), EXTERNAL)
def test_external_data(tmp_path: Path, key: str, value: str | None, message: str) -> None:
    def change(parts: Parts) -> None:
        tensor = parts.initializer("final_norm.weight")
        entries = {entry.key: entry.value for entry in tensor.external_data} | {key: value}
        del tensor.external_data[:]
        for name, text in entries.items():
            if text is not None:
                tensor.external_data.add(key=name, value=text)

    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "data").write_bytes(bytes(1 << 20))
    folder = tiny.make(tmp_path / "package", change=change)
    (folder / "link").symlink_to(outside / "data")
    (folder / "loop").symlink_to("loop")
    (folder / "linked").symlink_to(outside)
    found = refused(folder)
    assert found.startswith("model.onnx: tensor 'final_norm.weight' ")
    assert message in found


def test_external_field_twice(tmp_path: Path) -> None:
    def change(parts: Parts) -> None:
        parts.initializer("final_norm.weight").external_data.add(key="offset", value="0")

    assert "has a field of external_data twice" in refused(tiny.make(tmp_path, change=change))


def test_data_in_a_folder_or_by_a_link_inside_is_fine(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path)
    (folder / "model.onnx.data").rename(folder / "elsewhere")
    (folder / "model.onnx.data").symlink_to("elsewhere")
    assert open_package(folder).tensor("final_norm.weight").shape == (36,)


def test_tensors_start_at_a_line(tmp_path: Path) -> None:
    def change(parts: Parts) -> None:
        tensor = parts.initializer("embedding.weight.q")
        place = {entry.key: entry for entry in tensor.external_data}
        place["offset"].value = "32"

    found = refused(tiny.make(tmp_path, change=change))
    assert "tensor 'embedding.weight.q' is at offset 32, expected a multiple of 64" in found


# --- initializers -----------------------------------------------------------------------------------------------------


def set_value(parts: Parts, name: str, index: int, value: float) -> None:
    offset = next(int(e.value) for e in parts.initializer(name).external_data if e.key == "offset")
    parts.data[offset + 4 * index : offset + 4 * index + 4] = np.float32(value).tobytes()


def drop(parts: Parts, name: str) -> None:
    parts.model.graph.initializer.remove(parts.initializer(name))


def inline(parts: Parts, raw: bytes) -> None:
    tensor = parts.initializer("rope.inv_freq")
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    tensor.raw_data = raw


def extra(parts: Parts, name: str) -> None:
    tensor = parts.model.graph.initializer.add()
    tensor.CopyFrom(parts.initializer("final_norm.weight"))
    tensor.name = name


TENSORS: list[tuple[Change, str]] = [
    (lambda p: setattr(p.initializer("final_norm.weight"), "data_type", TensorProto.DOUBLE),
     "tensor 'final_norm.weight' is ONNX element type 11, expected float32"),
    (lambda p: setattr(p.initializer("embedding.weight.q"), "data_type", TensorProto.UINT8),
     "tensor 'embedding.weight.q' is uint8, expected int8"),
    (lambda p: p.initializer("final_norm.weight").dims.__setitem__(0, 37),
     "tensor 'final_norm.weight' has shape [37], expected [36]"),
    (lambda p: p.initializer("final_norm.weight").dims.append(-1),
     "tensor 'final_norm.weight' has shape [36, -1], expected [36]"),
    (lambda p: p.initializer("layers.1.mlp.up_proj.weight.m").dims.__setitem__(1, 1),
     "tensor 'layers.1.mlp.up_proj.weight.m' has shape [4, 1, 16], expected [4, 2, 16]"),
    (lambda p: drop(p, "layers.0.attention.q_proj.weight.d"),
     "tensor 'layers.0.attention.q_proj.weight.d' of node 'layers.0.attention.q_proj' is missing"),
    (lambda p: extra(p, "stray"), "tensor 'stray' belongs to no node"),
    (lambda p: extra(p, "final_norm.weight"), "tensor 'final_norm.weight' is there twice"),
    (lambda p: extra(p, "a\nb\x1b[2J" + "c" * 500), "tensor 'a?b?[2Jccc"),
    (lambda p: inline(p, b"1234"), "tensor 'rope.inv_freq' has 4 bytes in field raw_data, expected 12"),
    (lambda p: p.model.graph.sparse_initializer.add(), "holds sparse tensors"),
    (lambda p: set_value(p, "final_norm.weight", 5, np.nan),
     "tensor 'final_norm.weight' has nan at index 5, expected finite numbers"),
    (lambda p: set_value(p, "layers.1.input_norm.weight", 35, -np.inf),
     "tensor 'layers.1.input_norm.weight' has -inf at index 35, expected finite numbers"),
    (lambda p: set_value(p, "rope.inv_freq", 1, np.inf),
     "tensor 'rope.inv_freq' has inf at index 1, expected finite and positive numbers"),
    (lambda p: set_value(p, "rope.inv_freq", 2, -1),
     "tensor 'rope.inv_freq' has -1.0 at index 2, expected finite and positive numbers"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), TENSORS, ids=[m[:50].replace("\0", "") for _, m in TENSORS])
def test_initializers(tmp_path: Path, change: Change, message: str) -> None:
    found = refused(tiny.make(tmp_path, change=change))
    assert found.startswith("model.onnx: ")
    assert message in found
    assert len(found) < 600


def test_a_bias_is_checked_too(tmp_path: Path) -> None:
    def change(parts: Parts) -> None:
        set_value(parts, "layers.0.mlp.down_proj.bias", 0, np.nan)

    assert "tensor 'layers.0.mlp.down_proj.bias' has nan" in refused(tiny.make(tmp_path, Shape(biases=True), change))


@pytest.mark.parametrize(("value", "shown"), [(0, "0.0"), (-0.5, "-0.5"), (np.nan, "nan"), (np.inf, "inf")])
def test_the_scale_of_ternary_weights_is_finite_and_positive(tmp_path: Path, value: float, shown: str) -> None:
    name = "layers.1.mlp.down_proj.weight.d"
    found = refused(tiny.make(tmp_path, tiny.BITNET, lambda p: set_value(p, name, 0, value)))
    assert found == f"model.onnx: tensor '{name}' has {shown} at index 0, expected finite and positive numbers{AGAIN}"


# --- nodes, interface, functions --------------------------------------------------------------------------------------


def attribute(parts: Parts, node: str, name: str) -> onnx.AttributeProto:
    return next(a for a in parts.node(node).attribute if a.name == name)


HEAD_NORMS: list[tuple[Change, str]] = [
    (lambda p: p.initializer("layers.1.attention.k_norm.weight").dims.__setitem__(0, 5),
     "tensor 'layers.1.attention.k_norm.weight' has shape [5], expected [6]"),
    (lambda p: set_value(p, "layers.0.attention.q_norm.weight", 1, np.nan),
     "tensor 'layers.0.attention.q_norm.weight' has nan at index 1"),
    (lambda p: (drop(p, "layers.0.attention.q_norm.weight"),
                p.node("layers.0.attention").input.__setitem__(3, "layers.0.attention.q_proj")),
     "tensor 'layers.0.attention.q_proj' of node 'layers.0.attention' is missing"),
    (lambda p: p.node("layers.0.attention").input.__setitem__(4, "final_norm.weight"),
     "node 'layers.0.attention' share tensor 'final_norm.weight' but not its shape"),
    (lambda p: p.node("layers.0.attention").input.pop(), "has 9 inputs and 3 outputs, expected 10 and 3"),
    (lambda p: p.node("layers.0.attention").input.__setitem__(5, "rope.sin"),
     "reads 'rope.sin', which is sines, expected cosines"),
    (lambda p: setattr(attribute(p, "layers.1.attention", "epsilon"), "f", 1e-3),
     "node 'layers.1.attention' has epsilon 0.001, but rms_norm_eps is 1e-05"),
    (lambda p: setattr(attribute(p, "layers.1.attention", "n_heads"), "i", 2), "has n_heads 2, expected 4"),
    (lambda p: setattr(p.node("layers.0.attention"), "op_type", "Attention"), "has 10 inputs and 3 outputs"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), HEAD_NORMS, ids=[message for _, message in HEAD_NORMS])
def test_norms_of_heads(tmp_path: Path, change: Change, message: str) -> None:
    def changed(parts: Parts) -> None:
        change(parts)
        used = operators.functions({node.op_type for node in parts.model.graph.node if node.domain})
        del parts.model.functions[:]
        parts.model.functions.extend(used)

    shape = Shape(head_norms=True)
    assert open_package(tiny.make(tmp_path / "good", shape)).config.head_dim == 6
    assert message in refused(tiny.make(tmp_path / "bad", shape, changed))


def swap(parts: Parts, first: int, second: int) -> None:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in parts.model.graph.node]
    nodes[first], nodes[second] = nodes[second], nodes[first]
    del parts.model.graph.node[:]
    parts.model.graph.node.extend(nodes)


def retype(parts: Parts) -> None:
    attribute(parts, "embedding", "N").CopyFrom(helper.make_attribute("N", 37.0))


def append_node(parts: Parts) -> None:
    parts.model.graph.node.append(helper.make_node("Identity", ["logits"], ["again"], name="more"))


def function(parts: Parts, name: str) -> onnx.FunctionProto:
    return next(f for f in parts.model.functions if f.name == name)


GRAPH: list[tuple[Change, str]] = [
    (lambda p: setattr(p.node("output"), "op_type", "Gemm"),
     "node 'output' is 'edgerun.Gemm', which is no operator that edgerun knows"),
    (lambda p: setattr(p.node("embedding"), "op_type", "LinearQ8"),
     "node 'embedding' reads 'input_ids', which no node before it gives"),
    (lambda p: setattr(p.node("output"), "op_type", "EmbedQ8"),
     "node 'output' reads 'final_norm', expected 'input_ids'"),
    (lambda p: setattr(p.node("layers.1.mlp.swiglu"), "op_type", "GeGLU"),
     "node 'layers.1.mlp.swiglu' is 'edgerun.GeGLU', which is no operator that edgerun knows"),
    (lambda p: setattr(p.node("layers.1.mlp.swiglu"), "domain", ""),
     "node 'layers.1.mlp.swiglu' is 'SwiGLU', expected edgerun.SwiGLU"),
    (lambda p: setattr(p.node("layers.1.mlp.swiglu"), "op_type", "SquaredReLU"),
     "function 'SquaredReLU', which node 'layers.1.mlp.swiglu' uses, is missing"),
    (lambda p: p.model.graph.node.remove(p.node("layers.0.mlp.swiglu")),
     "node 'layers.0.mlp.down_proj' reads 'layers.0.mlp.swiglu', which no node before it gives"),
    (lambda p: setattr(p.node("final_norm"), "domain", "com.evil"),
     "node 'final_norm' is 'com.evil.RMSNormalization', expected RMSNormalization"),
    (lambda p: setattr(p.node("mask"), "domain", ""), "node 'mask' is 'CausalMask', expected edgerun.CausalMask"),
    (lambda p: setattr(p.node("mask"), "overload", "x"), "node 'mask' has overload 'x', expected none"),
    (lambda p: setattr(attribute(p, "embedding", "N"), "i", 1 << 40),
     "node 'embedding' has N 1099511627776, expected 37"),
    (lambda p: setattr(attribute(p, "layers.0.attention.k_proj", "N"), "i", 24),
     "node 'layers.0.attention' reads 'layers.0.attention.k_proj' of 24 features, expected 2 heads of 6"),
    (lambda p: setattr(attribute(p, "layers.1.attention", "head_dim"), "i", 600),
     "node 'layers.1.attention' has head_dim 600, expected 6"),
    (lambda p: setattr(attribute(p, "layers.1.attention", "n_kv_heads"), "i", 0),
     "node 'layers.1.attention' has n_kv_heads 0, expected 2"),
    (lambda p: setattr(attribute(p, "layers.1.attention", "scale"), "f", float("nan")),
     "node 'layers.1.attention' has scale nan, expected a positive number"),
    (lambda p: setattr(attribute(p, "layers.1.attention", "scale"), "f", 0.0), "has scale 0.0, expected a positive"),
    (lambda p: setattr(attribute(p, "final_norm", "axis"), "i", 1), "node 'final_norm' has axis 1, expected -1"),
    (lambda p: setattr(attribute(p, "final_norm", "epsilon"), "f", float("nan")), "node 'final_norm' has epsilon nan"),
    (lambda p: setattr(attribute(p, "final_norm", "stash_type"), "i", 10), "has stash_type 10, expected 1"),
    (retype, "node 'embedding' has an attribute N that is no int"),
    (lambda p: setattr(attribute(p, "embedding", "N"), "ref_attr_name", "N"), "has an attribute N that is no int"),
    (lambda p: p.node("embedding").attribute.pop(), "node 'embedding' has attributes 'K', expected 'N, K'"),
    (lambda p: p.node("mask").attribute.append(helper.make_attribute("x", 1)), "has attributes 'x', expected ''"),
    (lambda p: p.node("output").input.pop(), "node 'output' has 2 inputs and 1 outputs, expected 3 and 1"),
    (lambda p: p.node("rope").output.pop(), "node 'rope' has 2 inputs and 1 outputs"),
    (lambda p: p.node("layers.0.attention").input.__setitem__(0, "ghost"),
     "node 'layers.0.attention' reads 'ghost', which no node before it gives"),
    (lambda p: p.node("layers.1.attention").input.__setitem__(6, "past_key_values.0.key"),
     "reads 'past_key_values.0.key', expected 'past_key_values.1.key'"),
    (lambda p: p.node("layers.0.mlp.residual").input.__setitem__(0, "embedding"),
     "no kernel for node 'layers.0.mlp.residual': it reads 'embedding', in whose place node "
     "'layers.0.attention.residual' puts its output"),
    (lambda p: p.node("layers.0.mlp.swiglu").output.__setitem__(0, "layers.0.input_norm"),
     "gives 'layers.0.input_norm', which is no new name"),
    (lambda p: p.node("layers.0.mlp.swiglu").output.__setitem__(0, "final_norm.weight"), "which is no new name"),
    (lambda p: p.node("layers.0.mlp.swiglu").output.__setitem__(0, ""), "gives '', which is no new name"),
    (lambda p: p.node("layers.0.attention").output.__setitem__(1, "other"),
     "node 'layers.0.attention' does not give present.0.key and present.0.value"),
    (lambda p: p.node("output").output.__setitem__(0, "scores"), "node 'output' gives 'scores', expected 'logits'"),
    (lambda p: p.node("final_norm").input.__setitem__(1, "rope.inv_freq"),
     "node 'final_norm' and node 'rope' share tensor 'rope.inv_freq' but not its shape"),
    (lambda p: swap(p, 3, 4), "reads 'layers.0.input_norm', which no node before it gives"),
    (lambda p: p.model.graph.node.pop(), "node 'final_norm' gives 'final_norm', expected 'logits'"),
    (append_node, "node 'more' is 'Identity', which is no operator that edgerun knows"),
    (lambda p: p.model.graph.ClearField("node"), "holds no graph"),
    (lambda p: p.model.graph.input.pop(), "has 5 graph inputs, expected 6"),
    (lambda p: setattr(p.model.graph.input[0], "name", "tokens"), "has graph input 'tokens', expected 'input_ids'"),
    (lambda p: setattr(p.model.graph.input[0].type.tensor_type, "elem_type", 1),
     "graph input 'input_ids' has element type 1 and shape [?, ?], expected 7 and [?, ?]"),
    (lambda p: p.model.graph.output[1].type.tensor_type.shape.dim.pop(),
     "graph output 'present.0.key' has element type"),
    (lambda p: setattr(p.model.opset_import[0], "version", 22),
     "uses operator sets '' 22, 'edgerun' 1, expected '' 23"),
    (lambda p: p.model.opset_import.add(domain="com.evil", version=1), "uses operator sets '' 23, 'com.evil' 1"),
    (lambda p: p.model.functions.pop(), "function 'SwiGLU', which node 'layers.0.mlp.swiglu' uses, is missing"),
    (lambda p: function(p, "SwiGLU").node.pop(), "function 'SwiGLU' is not the one of format version 1 (edited?)"),
    (lambda p: setattr(function(p, "CausalMask").node[12].attribute[0], "f", 0.0),
     "function 'CausalMask' is not the one"),
    (lambda p: p.model.functions.add(domain="edgerun", name="Backdoor"), "function 'edgerun.Backdoor' is unknown"),
    (lambda p: p.model.functions.add(domain="", name="Add"), "function '.Add' is unknown"),
    (lambda p: p.model.functions.append(function(p, "SwiGLU")), "function 'SwiGLU' is there twice"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), GRAPH, ids=[f"{i}-{m[:45]}" for i, (_, m) in enumerate(GRAPH)])
def test_graph(tmp_path: Path, change: Change, message: str) -> None:
    found = refused(tiny.make(tmp_path, change=change))
    assert found.startswith("model.onnx: ")
    assert message in found
    assert found.endswith(AGAIN)


SUB_NORMS: list[tuple[Change, str]] = [
    (lambda p: p.initializer("layers.0.mlp.sub_norm.weight").dims.__setitem__(0, 36),
     "tensor 'layers.0.mlp.sub_norm.weight' has shape [36], expected [50]"),
    (lambda p: p.node("layers.0.mlp.sub_norm").input.__setitem__(1, "layers.0.input_norm.weight"),
     "node 'layers.0.mlp.sub_norm' and node 'layers.0.input_norm' share tensor 'layers.0.input_norm.weight' but not"),
    (lambda p: set_value(p, "layers.1.attention.sub_norm.weight", 23, np.nan),
     "tensor 'layers.1.attention.sub_norm.weight' has nan at index 23, expected finite numbers"),
    (lambda p: setattr(attribute(p, "layers.1.attention.sub_norm", "epsilon"), "f", 1e-6),
     "node 'layers.1.attention.sub_norm' has epsilon 1e-06, but rms_norm_eps is 1e-05 in edgerun.json"),
    (lambda p: p.node("layers.0.attention.sub_norm").input.__setitem__(0, "embedding"),
     "node 'layers.0.attention.o_proj' has K 24, expected 36"),
    (lambda p: p.node("layers.0.mlp.down_proj").input.__setitem__(0, "layers.0.mlp.squaredrelu"),
     "node 'layers.0.mlp.sub_norm' gives 'layers.0.mlp.sub_norm', which no node reads"),
    (lambda p: setattr(p.node("layers.0.mlp.sub_norm"), "domain", "edgerun"),
     "node 'layers.0.mlp.sub_norm' is 'edgerun.RMSNormalization', expected RMSNormalization"),
    (lambda p: setattr(p.node("embedding"), "op_type", "BitLinear"),
     "node 'embedding' has 4 inputs and 1 outputs, expected 3 and 1"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), SUB_NORMS, ids=[m[:45] for _, m in SUB_NORMS])
def test_norms_before_linear_layers(tmp_path: Path, change: Change, message: str) -> None:
    found = refused(tiny.make(tmp_path, tiny.BITNET, change))
    assert found.startswith("model.onnx: ")
    assert message in found
    assert found.endswith(AGAIN)


def test_a_separate_head_that_claims_to_be_tied(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path, Shape(tied=False), lambda p: p.config.update(tied_embeddings=True))
    assert "node 'output' does not share the embedding's tensors, but tied_embeddings is true" in refused(folder)


@pytest.mark.parametrize("name", ["final_norm", "rope.inv_freq", "SwiGLU", "embedding.weight.q", "layers.1", "length"])
@pytest.mark.parametrize("initializers", [True, False])
def test_a_name_that_is_no_utf8(tmp_path: Path, name: str, initializers: bool) -> None:
    """Everywhere alike, so that the graph stays consistent; also where the tensor of that name is missing."""
    folder = tiny.make(tmp_path, change=None if initializers else lambda p: p.model.graph.ClearField("initializer"))
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes().replace(name.encode(), b"\xff\xfe" + name[2:].encode()))
    found = refused(folder)
    what = "function \"edgerun.b'\\\\xff\\\\xfeiGLU'\" is unknown" if name == "SwiGLU" else "a name is no UTF-8"
    assert found == f"model.onnx: {what}{AGAIN}"


# --- anything at all --------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=4))
def test_flipped_bytes_never_crash(tmp_path: Path, changes: list[tuple[float, int]]) -> None:
    folder = tmp_path / "package"
    if not folder.exists():
        tiny.make(folder)
        (tmp_path / "sound").write_bytes((folder / "model.onnx").read_bytes())
    content = bytearray((tmp_path / "sound").read_bytes())
    for where, byte in changes:
        content[int(where * len(content))] = byte
    (folder / "model.onnx").write_bytes(content)
    try:
        package = open_package(folder)
    except PackageError as error:
        assert "\n" not in str(error)
    else:
        for name in tiny.build().tensors:
            if name in package._tensors:
                assert package.tensor(name).sum() is not None


def test_the_tests_own_package_is_json(tmp_path: Path) -> None:
    assert json.loads((tiny.make(tmp_path) / "edgerun.json").read_text())["format_version"] == 1
