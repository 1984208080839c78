"""A tiny random model package made by hand, with no exporter: what the tests of reading and of running start from."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from edgerun.package import layout, operators

Array = NDArray[Any]


@dataclass
class Shape:
    """Sizes of the model; by default none is a multiple of anything."""

    n_layers: int = 2
    hidden_size: int = 36
    intermediate_size: int = 50
    n_heads: int = 4
    n_kv_heads: int = 2
    head_dim: int = 6
    vocab_size: int = 37
    context_length: int = 64
    tied: bool = True
    biases: bool = False
    linear: str = "q4m"
    embedding: str = "q8"
    gate: str = "SwiGLU"
    sub_norms: bool = False
    """Whether there is a norm before o_proj and down_proj, too."""
    head_norms: bool = False
    """Whether every head of q and k has a norm."""
    down: str | None = None
    """The format of down_proj, if it differs from that of the other linear layers."""
    epsilon: float = 1e-5


BITNET = Shape(linear="ternary", embedding="q6k", gate="SquaredReLU", sub_norms=True, down="ternary_columns")


@dataclass
class Parts:
    """What `write` puts into the folder; a test changes what it likes first."""

    model: onnx.ModelProto
    config: dict[str, Any]
    data: bytearray
    tensors: dict[str, Array] = field(default_factory=dict)
    """Every initializer as it is stored."""

    def initializer(self, name: str) -> TensorProto:
        return next(t for t in self.model.graph.initializer if t.name == name)

    def node(self, name: str) -> onnx.NodeProto:
        return next(n for n in self.model.graph.node if n.name == name)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.onnx").write_bytes(self.model.SerializeToString())
        (folder / "model.onnx.data").write_bytes(self.data)
        (folder / "edgerun.json").write_text(json.dumps(self.config))
        for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
            (folder / name).write_text("{}")
        return folder


def random_tensors(fmt: str, n: int, k: int, rng: np.random.Generator) -> dict[str, Array]:
    """A random matrix in a stored format, its values about 1/sqrt(k)."""
    spread = 1 / np.sqrt(k)
    if fmt == "f32":
        return layout.pack("f32", (rng.standard_normal((n, k)) * spread).astype(np.float32))
    groups = -(-k // layout.GROUP)
    if fmt == "q8":
        d = rng.uniform(0.5, 1, (n, groups)) * spread / 64
        return layout.pack("q8", rng.integers(-127, 128, (n, k)).astype(np.int8), d.astype(np.float16))
    if fmt.startswith("ternary"):
        return layout.pack(fmt, rng.integers(0, 3, (n, k)).astype(np.uint8), np.array([1.2 * spread], np.float32))
    if fmt == "q6k":
        codes = rng.integers(0, 64, (n, k)).astype(np.uint8)
        s = (rng.integers(32, 128, (n, 2 * groups)) * rng.choice([-1, 1], (n, 2 * groups))).astype(np.int8)
        d = rng.uniform(0.5, 1, (n, -(-groups // layout.SUPER_GROUPS))) * spread / 1024
        return layout.pack("q6k", codes, d.astype(np.float16), s=s)
    d = (rng.uniform(0.5, 1, (n, groups)) * spread / 4).astype(np.float16)
    nibbles = rng.integers(0, 16, (n, k)).astype(np.uint8)
    return layout.pack(fmt, nibbles, d, d * np.float16(-7.5) if fmt == "q4m" else None)


def build(shape: Shape | None = None, seed: int = 0) -> Parts:
    """The parts of a package of random weights."""
    s = shape or Shape()
    rng = np.random.default_rng(seed)
    tensors: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []
    shapes: list[onnx.ValueInfoProto] = []

    def node(op: str, name: str, inputs: list[str], outputs: list[str] | None = None, **attributes: Any) -> str:
        outputs = outputs or [name]
        domain = operators.DOMAIN if op in operators.OPERATORS else ""
        nodes.append(helper.make_node(op, inputs, outputs, name=name, domain=domain, **attributes))
        return outputs[0]

    def vector(name: str, values: Array) -> str:
        tensors[name] = values.astype(np.float32)
        return name

    def matrix(name: str, fmt: str, n: int, k: int) -> list[str]:
        if f"{name}.{'w' if fmt == 'f32' else 'q'}" not in tensors:
            tensors.update({f"{name}.{suffix}": a for suffix, a in random_tensors(fmt, n, k, rng).items()})
        return [f"{name}.{suffix}" for suffix in layout.parts(fmt, n, k)]

    def linear(x: str, name: str, n: int, k: int, fmt: str = s.linear) -> str:
        y = node(operators.linear_operator(fmt), name, [x, *matrix(f"{name}.weight", fmt, n, k)], N=n, K=k)
        if not s.biases:
            return y
        return node("Add", f"{name}.biased", [y, vector(f"{name}.bias", rng.standard_normal(n) * 0.1)])

    def norm(x: str, name: str, width: int = s.hidden_size) -> str:
        weight = vector(f"{name}.weight", 1 + rng.standard_normal(width) * 0.1)
        return node("RMSNormalization", name, [x, weight], axis=-1, epsilon=s.epsilon, stash_type=1)

    sizes = {"N": s.vocab_size, "K": s.hidden_size}
    table = matrix("embedding.weight", s.embedding, s.vocab_size, s.hidden_size)
    x = node(operators.embed_operator(s.embedding), "embedding", ["input_ids", *table], **sizes)
    inv_freq = vector("rope.inv_freq", 10000.0 ** -(np.arange(0, s.head_dim, 2) / s.head_dim))
    node("RotaryCosSin", "rope", ["position_ids", inv_freq], ["rope.cos", "rope.sin"])
    node("CausalMask", "mask", ["position_ids", "past_key_values.0.key"])
    wide, narrow = s.n_heads * s.head_dim, s.n_kv_heads * s.head_dim
    for i in range(s.n_layers):
        at = f"layers.{i}"
        h = norm(x, f"{at}.input_norm")
        sides = (("q_proj", wide), ("k_proj", narrow), ("v_proj", narrow))
        qkv = [linear(h, f"{at}.attention.{role}", n, s.hidden_size) for role, n in sides]
        shapes.append(helper.make_tensor_value_info(qkv[2], TensorProto.FLOAT, ["batch", "sequence", narrow]))
        shared = ["rope.cos", "rope.sin", "mask", f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        given = [f"{at}.attention", f"present.{i}.key", f"present.{i}.value"]
        heads: dict[str, float] = {"n_heads": s.n_heads, "n_kv_heads": s.n_kv_heads, "head_dim": s.head_dim}
        if s.head_norms:
            shared[:0] = [
                vector(f"{at}.attention.{role}.weight", 1 + rng.standard_normal(s.head_dim) * 0.1)
                for role in ("q_norm", "k_norm")
            ]
            heads["epsilon"] = s.epsilon
        op = "QKNormAttention" if s.head_norms else "Attention"
        a = node(op, f"{at}.attention", [*qkv, *shared], given, **heads, scale=s.head_dim**-0.5)
        if s.sub_norms:
            a = norm(a, f"{at}.attention.sub_norm", wide)
        o = linear(a, f"{at}.attention.o_proj", s.hidden_size, wide)
        x = node("Add", f"{at}.attention.residual", [x, o])
        h = norm(x, f"{at}.post_attention_norm")
        gated = [linear(h, f"{at}.mlp.{r}", s.intermediate_size, s.hidden_size) for r in ("gate_proj", "up_proj")]
        g = node(s.gate, f"{at}.mlp.{s.gate.lower()}", gated)
        if s.sub_norms:
            g = norm(g, f"{at}.mlp.sub_norm", s.intermediate_size)
        d = linear(g, f"{at}.mlp.down_proj", s.hidden_size, s.intermediate_size, s.down or s.linear)
        x = node("Add", f"{at}.mlp.residual", [x, d])
    head = table if s.tied else matrix("output.weight", s.embedding, s.vocab_size, s.hidden_size)
    node(operators.linear_operator(s.embedding), "output", [norm(x, "final_norm"), *head], ["logits"], **sizes)

    data = bytearray()
    initializers = [_place(name, array, data) for name, array in tensors.items()]
    graph = helper.make_graph(nodes, "llama", *_interface(s), initializers, value_info=shapes)
    model = helper.make_model(
        graph,
        functions=operators.functions({n.op_type for n in nodes if n.domain}),
        opset_imports=[helper.make_opsetid("", operators.OPSET), helper.make_opsetid(operators.DOMAIN, 1)],
        ir_version=operators.IR_VERSION,
    )
    return Parts(model, _config(s), data, tensors)


def make(folder: Path, shape: Shape | None = None, change: Callable[[Parts], object] | None = None) -> Path:
    """Write a package, changed first by `change`, and return its folder."""
    parts = build(shape)
    if change is not None:
        change(parts)
    return parts.write(folder)


def _place(name: str, array: Array, data: bytearray) -> TensorProto:
    data.extend(bytes(-len(data) % 64))
    tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model.onnx.data"), ("offset", len(data)), ("length", array.nbytes)):
        tensor.external_data.add(key=key, value=str(value))
    data.extend(array.tobytes())
    return tensor


def _interface(s: Shape) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    value = helper.make_tensor_value_info
    inputs = [value(name, TensorProto.INT64, ["batch", "sequence"]) for name in ("input_ids", "position_ids")]
    outputs = [value("logits", TensorProto.FLOAT, ["batch", "sequence", s.vocab_size])]
    for i in range(s.n_layers):
        for part in ("key", "value"):
            for values, name, length in ((inputs, "past_key_values", "past"), (outputs, "present", "past+sequence")):
                shape = ["batch", s.n_kv_heads, length, s.head_dim]
                values.append(value(f"{name}.{i}.{part}", TensorProto.FLOAT, shape))
    return inputs, outputs


def _config(s: Shape) -> dict[str, Any]:
    same = ("n_layers", "hidden_size", "intermediate_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size")
    return {
        "format_version": 1,
        "family": "bitnet" if s.linear.startswith("ternary") else "llama",
        "name": "tiny",
        **{name: getattr(s, name) for name in same},
        "context_length": s.context_length,
        "rope_theta": 10000.0,
        "rms_norm_eps": s.epsilon,
        "tied_embeddings": s.tied,
        "source": {"file": "tiny.gguf", "format": "gguf", "sha256": "0" * 64},
        "quantisation": {"linear": "q4_1", "embedding": "q8_0", "notes": []},
        "tool": "edgerun 0.1",
        "calibration": {},
    }
