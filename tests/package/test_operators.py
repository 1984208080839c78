"""Each operator of domain `edgerun`, run by plain onnxruntime, against a plain numpy statement of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgerun.package import layout, operators
from edgerun_kernels import reference

Array = NDArray[Any]
ODD_SHAPES = [(16, 32), (5, 7), (33, 70), (48, 96), (1, 1), (31, 64), (17, 300), (20, 520)]
EMBEDDED = [fmt for fmt in layout.FORMATS if not fmt.startswith("ternary")]

_RANK = {"mask": 4, "present_key": 4, "present_value": 4}


def run(
    name: str, inputs: dict[str, Array], constants: dict[str, Array] | None = None, **attributes: float
) -> list[Array]:
    """Run one operator in a model of its own; inputs are given when it runs, constants are initializers."""
    spec = operators.OPERATORS[name]
    assert set(attributes) == set(spec.attributes)
    node = helper.make_node(name, spec.inputs, spec.outputs, domain=operators.DOMAIN, **attributes)
    graph = helper.make_graph(
        [node],
        name,
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), [None] * a.ndim)
         for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [None] * _RANK.get(n, 3)) for n in spec.outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    model = helper.make_model(
        graph,
        functions=operators.functions([name]),
        ir_version=operators.IR_VERSION,
        opset_imports=[
            helper.make_opsetid("", operators.OPSET),
            helper.make_opsetid(operators.DOMAIN, operators.DOMAIN_VERSION),
        ],
    )
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    outputs: list[Array] = ort.InferenceSession(model.SerializeToString(), options).run(list(spec.outputs), inputs)
    return outputs


def stored_matrix(fmt: str, n: int, k: int, rng: np.random.Generator) -> tuple[dict[str, Array], Array]:
    """Random tensors of one format and the float32 matrix that they hold."""
    if fmt == "f32":
        dense = rng.standard_normal((n, k)).astype(np.float32)
        return layout.pack("f32", dense), dense
    if fmt == "q6k":
        codes, groups = rng.integers(0, 64, (n, k)).astype(np.uint8), -(-k // 32)
        s = rng.integers(-128, 128, (n, 2 * groups)).astype(np.int8)
        d = (rng.standard_normal((n, -(-groups // 8))) * 1e-3).astype(np.float16)
        integers = (codes.astype(np.int32) - 32) * np.repeat(s.astype(np.int32), 16, axis=1)[:, :k]
        scale = np.repeat(d.astype(np.float32), 256, axis=1)[:, :k]
        return layout.pack("q6k", codes, d, s=s), integers.astype(np.float32) * scale
    low, high, dtype = (-128, 128, np.int8) if fmt == "q8" else (0, 16, np.uint8)
    values = rng.integers(low, high, (n, k)).astype(dtype)
    d, m = (rng.standard_normal((2, n, -(-k // 32))) * 0.1).astype(np.float16)
    wide = np.repeat(d.astype(np.float32), 32, axis=1)[:, :k]
    numbers = values.astype(np.float32) - (8 if fmt == "q4" else 0)
    if fmt != "q4m":
        return layout.pack(fmt, values, d), numbers * wide
    minima = np.repeat(m.astype(np.float32), 32, axis=1)[:, :k]
    return layout.pack(fmt, values, d, m), numbers * wide + minima


@pytest.mark.parametrize("fmt", EMBEDDED)
@pytest.mark.parametrize(("n", "k"), ODD_SHAPES)
def test_linear(fmt: str, n: int, k: int) -> None:
    rng = np.random.default_rng(n * k)
    tensors, dense = stored_matrix(fmt, n, k, rng)
    np.testing.assert_array_equal(layout.dequantise(fmt, tensors, n, k), dense)
    x = rng.standard_normal((2, 3, k)).astype(np.float32)
    (y,) = run(operators.linear_operator(fmt), {"x": x}, tensors, N=n, K=k)
    assert y.shape == (2, 3, n)
    wanted = x.astype(np.float64) @ dense.T.astype(np.float64)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5 * max(1.0, np.abs(wanted).max()))


@pytest.mark.parametrize("fmt", ["ternary", "ternary_columns", "ternary_triples"])
@pytest.mark.parametrize("pattern", ["normal", "outliers", "ties", "zeros", "tiny", "huge"])
@pytest.mark.parametrize(("n", "k"), [*ODD_SHAPES, (300, 40), (40, 1000)])
def test_bit_linear(n: int, k: int, pattern: str, fmt: str) -> None:
    """Within 2 ulp: the integers are the same, and onnxruntime may multiply them by one scale after the other."""
    rng = np.random.default_rng(n * k)
    codes = rng.integers(0, 3, (n, k)).astype(np.uint8)
    tensors = layout.pack(fmt, codes, np.array([0.37], np.float32))
    dense = layout.dequantise(fmt, tensors, n, k)
    np.testing.assert_array_equal(dense, (codes.astype(np.float32) - 1) * np.float32(0.37))
    x = rng.standard_normal((2, 3, k)).astype(np.float32)
    if pattern == "outliers":
        x[rng.random(x.shape) < 0.03] *= 40
    if pattern == "ties":
        x = rng.integers(-253, 254, x.shape).astype(np.float32) / 2
        x[..., 0] = 127
    x = x * np.float32({"zeros": 0, "tiny": 1e-7, "huge": 1e30}.get(pattern, 1))
    (y,) = run(operators.linear_operator(fmt), {"x": x}, tensors, N=n, K=k)
    assert y.shape == (2, 3, n)
    rows = reference.quantize_rows(x.reshape(6, k))
    wanted = reference.linear_ternary(rows, tensors["q"], tensors["d"])[:, :n]
    np.testing.assert_array_max_ulp(y.reshape(6, n), wanted, 2)


def test_the_largest_sums_of_a_bit_linear() -> None:
    """Every weight and every activation as large as can be, in the width of the largest published model's MLP."""
    x, n, k = np.ones((1, 2, 6912), np.float32), 17, 6912
    x[0, 1] = -1
    for code in (0, 2):
        tensors = layout.pack("ternary", np.full((n, k), code, np.uint8), np.ones(1, np.float32))
        (y,) = run("BitLinear", {"x": x}, tensors, N=n, K=k)
        np.testing.assert_allclose(y, x[..., :n] * (code - 1) * k, rtol=3e-7)


def test_nothing_embeds_with_ternary_weights() -> None:
    assert [operators.OPERATORS[name].weights for name in operators.EMBEDS] == EMBEDDED
    with pytest.raises(KeyError):
        operators.embed_operator("ternary")


@pytest.mark.parametrize("fmt", EMBEDDED)
@pytest.mark.parametrize(("n", "k"), ODD_SHAPES)
def test_embed(fmt: str, n: int, k: int) -> None:
    rng = np.random.default_rng(n + k)
    tensors, dense = stored_matrix(fmt, n, k, rng)
    ids = rng.integers(0, n, (2, 9))
    ids[0, :2] = 0, n - 1
    (x,) = run(operators.embed_operator(fmt), {"input_ids": ids}, tensors, N=n, K=k)
    np.testing.assert_array_equal(x, dense[ids])


@pytest.mark.parametrize("fmt", EMBEDDED)
def test_embed_refuses_an_id_beyond_the_vocabulary(fmt: str) -> None:
    tensors, _ = stored_matrix(fmt, 17, 32, np.random.default_rng(0))
    with pytest.raises(Exception, match="indices element out of data bounds"):
        run(operators.embed_operator(fmt), {"input_ids": np.array([[17]])}, tensors, N=17, K=32)


def test_rotary_cos_sin() -> None:
    inv_freq = (10000.0 ** -(np.arange(0, 64, 2) / 64)).astype(np.float32)
    positions = np.array([[0, 1, 2, 3], [4090, 4091, 131000, 131001]])
    cos, sin = run("RotaryCosSin", {"position_ids": positions}, {"inv_freq": inv_freq})
    angles = (positions.astype(np.float32)[..., None] * inv_freq).astype(np.float64)
    # float32 sine of an exact float32 angle, however large
    np.testing.assert_allclose(cos, np.cos(angles), rtol=0, atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angles), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("past", "length"), [(0, 1), (0, 5), (3, 4), (7, 1)])
def test_causal_mask(past: int, length: int) -> None:
    positions = np.stack([past + np.arange(length), np.arange(length)])
    past_key = np.zeros((2, 3, past, 4), np.float32)
    (mask,) = run("CausalMask", {"position_ids": positions, "past_key": past_key})
    visible = np.arange(past + length)[None, None, None, :] <= positions[:, None, :, None]
    np.testing.assert_array_equal(mask, np.where(visible, 0, -1e30).astype(np.float32))


def rotate(x: Array, cos: Array, sin: Array) -> Array:
    """Rotate-half RoPE of [batch, heads, sequence, head_dim]."""
    first, second = np.split(x, 2, axis=-1)
    cos, sin = cos[:, None], sin[:, None]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 2, 8), (9, 3, 64), (6, 1, 10), (4, 4, 6), (8, 2, 2)])
@pytest.mark.parametrize(("batch", "past", "length"), [(1, 0, 1), (1, 0, 5), (2, 4, 3), (1, 7, 1), (1, 300, 1)])
def test_attention(heads: int, kv_heads: int, head_dim: int, batch: int, past: int, length: int, normed: bool) -> None:
    rng = np.random.default_rng(heads + past)

    def random(*shape: int) -> Array:
        return rng.standard_normal(shape).astype(np.float32)

    positions = past + np.arange(length)
    angles = random(batch, length, head_dim // 2) * 5
    visible = np.arange(past + length)[None, :] <= positions[:, None]
    mask = np.broadcast_to(np.where(visible, 0, -1e30).astype(np.float32), (batch, 1, length, past + length))
    inputs = {
        "q": random(batch, length, heads * head_dim),
        "k": random(batch, length, kv_heads * head_dim),
        "v": random(batch, length, kv_heads * head_dim),
        "cos": np.cos(angles),
        "sin": np.sin(angles),
        "mask": mask,
        "past_key": random(batch, kv_heads, past, head_dim),
        "past_value": random(batch, kv_heads, past, head_dim),
    }
    norms = {"q_norm": random(head_dim), "k_norm": random(head_dim)} if normed else {}
    scale, epsilon = 0.37, 1e-2
    sizes = {"n_heads": heads, "n_kv_heads": kv_heads, "head_dim": head_dim, "scale": scale}
    y, present_key, present_value = run(
        "QKNormAttention" if normed else "Attention", inputs, norms, **sizes, **({"epsilon": epsilon} if normed else {})
    )
    exact = {name: a.astype(np.float64) for name, a in inputs.items()}
    q, k, v = (exact[s].reshape(batch, length, -1, head_dim).transpose(0, 2, 1, 3) for s in "qkv")
    if normed:
        q, k = (
            x / np.sqrt((x * x).mean(-1, keepdims=True) + epsilon) * norms[f"{name}_norm"]
            for x, name in ((q, "q"), (k, "k"))
        )
    keys = np.concatenate([exact["past_key"], rotate(k, exact["cos"], exact["sin"])], axis=2)
    values = np.concatenate([exact["past_value"], v], axis=2)
    group = heads // kv_heads
    scores = rotate(q, exact["cos"], exact["sin"]) @ np.repeat(keys, group, 1).swapaxes(2, 3) * scale + exact["mask"]
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    wanted = (weights @ np.repeat(values, group, 1)).transpose(0, 2, 1, 3).reshape(batch, length, -1)
    np.testing.assert_allclose(y, wanted, rtol=0, atol=1e-5)
    np.testing.assert_allclose(present_key, keys, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(present_value, values.astype(np.float32))


def test_swiglu() -> None:
    gate = np.array([[[-200.0, -1, 0, 1, 200, 3.5]]], np.float32)
    up = np.array([[[1.0, 2, 3, -4, 5, 0]]], np.float32)
    (y,) = run("SwiGLU", {"gate": gate, "up": up})
    exact = gate.astype(np.float64)
    np.testing.assert_allclose(y, exact / (1 + np.exp(-exact)) * up, rtol=1e-6, atol=1e-30)


def test_squared_relu() -> None:
    gate = np.array([[[-200.0, -1, 0, 1, 200, 3.5, 0.1]]], np.float32)
    up = np.array([[[1.0, 2, 3, -4, 5, 0, 0.3]]], np.float32)
    (y,) = run("SquaredReLU", {"gate": gate, "up": up})
    np.testing.assert_array_equal(y, reference.squared_relu(gate, up))
    np.testing.assert_array_equal(y[0, 0, :6], [0, 0, 0, -4, 200_000, 0])


def test_functions_follow_the_signatures() -> None:
    functions = operators.functions()
    assert [f.name for f in functions] == list(operators.OPERATORS)
    for function in functions:
        spec = operators.OPERATORS[function.name]
        assert tuple(function.input) == spec.inputs
        assert tuple(function.output) == spec.outputs
        assert list(function.attribute) == list(spec.attributes)
        assert {node.domain for node in function.node} == {""}
    assert [f.name for f in operators.functions(["SwiGLU", "EmbedQ8"])] == ["EmbedQ8", "SwiGLU"]
    with pytest.raises(ValueError, match="unknown operators: LinearQ3"):
        operators.functions(["LinearQ3"])


def test_fingerprint_sees_meaning_and_not_dress() -> None:
    (function,) = operators.functions(["Attention"])
    printed = operators.fingerprint(function)
    dressed = onnx.FunctionProto.FromString(function.SerializeToString())
    dressed.doc_string = "an annotation"
    dressed.node[0].name = "rotate"
    attributes = list(dressed.node[2].attribute)
    del dressed.node[2].attribute[:]
    dressed.node[2].attribute.extend(reversed(attributes))
    assert operators.fingerprint(dressed) == printed
    for change in (
        lambda f: f.node[0].input.__setitem__(0, "k"),
        lambda f: f.node[0].attribute.pop(),
        lambda f: setattr(f.node[0].attribute[0], "i", 1),
        lambda f: setattr(f.opset_import[0], "version", 24),
        lambda f: f.attribute.append("extra"),
        lambda f: f.node.pop(),
    ):
        changed = onnx.FunctionProto.FromString(function.SerializeToString())
        change(changed)
        assert operators.fingerprint(changed) != printed
