"""The one form of graph that a package may hold, checked node by node against edgerun.json.

embed, RoPE table, mask; per layer: norm, q, k, v, attention, o, residual, norm, gate, up, SwiGLU or SquaredReLU, down,
residual; then norm and output head. A layer's linear layers may each have a norm of their own before them and the Add
of a bias behind them, and attention may have norms of the heads of q and k. Inputs and outputs follow the
`past_key_values.N.key` convention. See edgerun.package.operators for the operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from edgerun.package.config import Config
from edgerun.package.layout import Part, parts
from edgerun.package.operators import (
    ATTENTIONS,
    DOMAIN,
    DOMAIN_VERSION,
    EMBEDS,
    FINGERPRINTS,
    GATES,
    LINEARS,
    OPERATORS,
    OPSET,
    fingerprint,
)
from edgerun.package.problem import damaged, quoted

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto

_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_ATTRIBUTE_TYPES = {"float": 1, "int": 2}  # AttributeProto.AttributeType
_NORM = {"axis": "int", "epsilon": "float", "stash_type": "int"}
_EXPECTED = {EMBEDS: "Embed*", LINEARS: "Linear* or *BitLinear", GATES: " or ".join(GATES)}


class Wanted(NamedTuple):
    """What an initializer must be. vector: small, and its values must be finite (and positive, if so said)."""

    part: Part
    node: str
    vector: bool = False
    positive: bool = False


def check_model(path: Path, model: ModelProto) -> None:
    """Operator set versions, and the functions: exactly those of edgerun, for every operator that is used."""
    if not model.HasField("graph") or not model.graph.node:
        raise damaged(path, "holds no graph")
    opsets = {imported.domain or "": imported.version for imported in model.opset_import}
    if opsets != {"": OPSET, DOMAIN: DOMAIN_VERSION} or len(model.opset_import) != 2:
        shown = ", ".join(f"{quoted(domain)} {version}" for domain, version in sorted(opsets.items()))
        what = f"uses operator sets {shown or 'without names'}, expected '' {OPSET} and '{DOMAIN}' {DOMAIN_VERSION}"
        raise damaged(path, what)
    known = set()
    for function in model.functions:
        if function.domain != DOMAIN or function.name not in FINGERPRINTS or function.overload:
            raise damaged(path, f"function {quoted(f'{function.domain}.{function.name}')} is unknown")
        if function.name in known:
            raise damaged(path, f"function {quoted(function.name)} is there twice")
        if fingerprint(function) != FINGERPRINTS[function.name]:
            raise damaged(path, f"function {quoted(function.name)} is not the one of format version 1 (edited?)")
        known.add(function.name)
    for node in model.graph.node:
        if node.domain == DOMAIN and node.op_type in FINGERPRINTS and node.op_type not in known:
            raise damaged(path, f"function {quoted(node.op_type)}, which node {quoted(node.name)} uses, is missing")


def check_graph(path: Path, graph: GraphProto, config: Config) -> dict[str, Wanted]:
    """Check all but the initializers, and say what those must be: name -> Wanted. Raises PackageError."""
    return _Check(path, graph, config).run()


class _Check:
    def __init__(self, path: Path, graph: GraphProto, config: Config) -> None:
        self.path, self.graph, self.config = path, graph, config
        self.nodes = list(graph.node)
        self.at = 0
        self.wanted: dict[str, Wanted] = {}
        self.taken = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}

    def run(self) -> dict[str, Wanted]:
        c = self.config
        if self.graph.sparse_initializer:
            raise damaged(self.path, "holds sparse tensors, which no package has")
        self._interface()
        embed = self._node(EMBEDS, ["input_ids"])
        self._matrix(embed, c.vocab_size, c.hidden_size)
        rope = self._node(("RotaryCosSin",), ["position_ids"])
        self._vector(rope, 1, c.head_dim // 2, positive=True)
        mask = self._node(("CausalMask",), ["position_ids", "past_key_values.0.key"])
        x = embed.output[0]
        for i in range(c.n_layers):
            x = self._layer(x, i, [*rope.output, *mask.output])
        head = self._node(LINEARS, [self._norm(x)])
        self._matrix(head, c.vocab_size, c.hidden_size)
        if self.at != len(self.nodes):
            raise self._wrong(self.nodes[self.at], f"follows the output head: n_layers is {c.n_layers} in edgerun.json")
        if head.output[0] != "logits":
            raise self._wrong(head, f"gives {quoted(head.output[0])}, expected 'logits'")
        tied = list(head.input[1:]) == list(embed.input[1:])
        if tied != c.tied_embeddings:
            stated = f"tied_embeddings is {str(c.tied_embeddings).lower()} in edgerun.json"
            raise self._wrong(head, f"{'shares' if tied else 'does not share'} the embedding's tensors, but {stated}")
        return self.wanted

    def _layer(self, x: str, i: int, shared: list[str]) -> str:
        c = self.config
        heads, kv_heads = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
        h = self._norm(x)
        q, k, v = (self._linear(h, n, c.hidden_size) for n in (heads, kv_heads, kv_heads))
        past = [f"past_key_values.{i}.key", f"past_key_values.{i}.value"]
        following = self.nodes[self.at] if self.at < len(self.nodes) else None
        normed = following is not None and following.op_type == "QKNormAttention"
        norms = following.input[3:5] if following is not None and normed else ()
        attention = self._node((ATTENTIONS[normed],), [q, k, v, *norms, *shared, *past])
        for at in range(3, 3 + len(norms)):
            self._vector(attention, at, c.head_dim)
        if normed:
            self._epsilon(attention)
        if list(attention.output[1:]) != [f"present.{i}.key", f"present.{i}.value"]:
            raise self._wrong(attention, f"does not give present.{i}.key and present.{i}.value")
        for name in ("n_heads", "n_kv_heads", "head_dim"):
            self._equals(attention, name, getattr(c, name))
        scale = next(a.f for a in attention.attribute if a.name == "scale")
        if not (np.isfinite(scale) and scale > 0):
            raise self._wrong(attention, f"has scale {scale}, expected a positive number")
        x = self._add(x, self._linear(attention.output[0], c.hidden_size, heads))
        h = self._norm(x)
        gate, up = (self._linear(h, c.intermediate_size, c.hidden_size) for _ in range(2))
        gated = self._node(GATES, [gate, up])
        return self._add(x, self._linear(gated.output[0], c.hidden_size, c.intermediate_size))

    def _linear(self, x: str, n: int, k: int) -> str:
        """A linear layer, its own norm where that is the next node, and its bias where an initializer is added."""
        following = self.nodes[self.at] if self.at < len(self.nodes) else None
        if following is not None and following.op_type == "RMSNormalization":
            x = self._norm(x, k)
        node = self._node(LINEARS, [x])
        self._matrix(node, n, k)
        y: str = node.output[0]
        following = self.nodes[self.at] if self.at < len(self.nodes) else node
        if following.op_type != "Add" or list(following.input[:1]) != [y]:
            return y
        bias = self._node(("Add",), [y])
        self._vector(bias, 1, n)
        return str(bias.output[0])

    def _norm(self, x: str, width: int | None = None) -> str:
        """A norm over ``width`` features, by default the hidden ones."""
        node = self._node(("RMSNormalization",), [x])
        self._vector(node, 1, width or self.config.hidden_size)
        self._equals(node, "axis", -1)
        self._equals(node, "stash_type", 1)
        self._epsilon(node)
        return str(node.output[0])

    def _epsilon(self, node: NodeProto) -> None:
        epsilon = next(a.f for a in node.attribute if a.name == "epsilon")
        if np.float32(epsilon) != np.float32(self.config.rms_norm_eps):
            stated = f"rms_norm_eps is {self.config.rms_norm_eps} in edgerun.json"
            raise self._wrong(node, f"has epsilon {epsilon:g}, but {stated}")

    def _add(self, x: str, y: str) -> str:
        return str(self._node(("Add",), [x, y]).output[0])

    def _node(self, ops: Sequence[str], values: Sequence[str]) -> NodeProto:
        """The next node: one of `ops`, its first inputs `values`, the others initializers, attributes as its op has."""
        expected = _EXPECTED.get(tuple(ops), ops[0])
        if self.at == len(self.nodes):
            what = f"ends after {self.at} nodes, where {expected} is expected: n_layers is {self.config.n_layers}"
            raise damaged(self.path, f"{what} in edgerun.json")
        node: NodeProto = self.nodes[self.at]
        self.at += 1
        if not all(isinstance(text, str) for text in (node.name, *node.input, *node.output)):
            raise damaged(self.path, "a name is no UTF-8")  # protobuf gives such a name as bytes
        standard = ops[0] in ("Add", "RMSNormalization")
        if node.op_type not in ops or node.domain not in (("", "ai.onnx") if standard else (DOMAIN,)) or node.overload:
            shown = f"{node.domain}.{node.op_type}" if node.domain else node.op_type
            raise self._wrong(node, f"is {quoted(shown)}, expected {'' if standard else DOMAIN + '.'}{expected}")
        spec = None if standard else OPERATORS[node.op_type]
        inputs, outputs = (len(spec.inputs), len(spec.outputs)) if spec else (2, 1)
        if len(node.input) != inputs or len(node.output) != outputs:
            found = f"{len(node.input)} inputs and {len(node.output)} outputs"
            raise self._wrong(node, f"has {found}, expected {inputs} and {outputs}")
        if list(node.input[: len(values)]) != list(values):
            got, want = next((g, w) for g, w in zip(node.input, values, strict=False) if g != w)
            raise self._wrong(node, f"reads {quoted(got)}, expected {quoted(want)}")
        for name in node.output:
            if not name or name in self.taken:
                raise self._wrong(node, f"gives {quoted(name)}, which is no new name")
            self.taken.add(name)
        self._attributes(node, spec.attributes if spec else _NORM if node.op_type == "RMSNormalization" else {})
        return node

    def _attributes(self, node: NodeProto, wanted: dict[str, str]) -> None:
        found = [a.name for a in node.attribute]
        if sorted(found) != sorted(wanted):
            raise self._wrong(node, f"has attributes {quoted(', '.join(found))}, expected {quoted(', '.join(wanted))}")
        for a in node.attribute:
            if a.type != _ATTRIBUTE_TYPES[wanted[a.name]] or a.ref_attr_name:
                raise self._wrong(node, f"has an attribute {a.name} that is no {wanted[a.name]}")

    def _equals(self, node: NodeProto, name: str, value: int) -> None:
        found = next(a.i for a in node.attribute if a.name == name)
        if found != value:
            raise self._wrong(node, f"has {name} {found}, expected {value}")

    def _matrix(self, node: NodeProto, n: int, k: int) -> None:
        self._equals(node, "N", n)
        self._equals(node, "K", k)
        fmt = OPERATORS[node.op_type].weights
        assert fmt is not None
        for name, part in zip(node.input[1:], parts(fmt, n, k).values(), strict=True):
            scale = fmt.startswith("ternary") and len(part.shape) == 1
            self._want(node, name, Wanted(part, node.name, vector=scale, positive=scale))

    def _vector(self, node: NodeProto, at: int, length: int, positive: bool = False) -> None:
        part = Part(np.dtype("<f4"), (length,))
        self._want(node, node.input[at], Wanted(part, node.name, vector=True, positive=positive))

    def _want(self, node: NodeProto, name: str, wanted: Wanted) -> None:
        earlier = self.wanted.setdefault(name, wanted)
        if earlier.part != wanted.part:
            raise self._wrong(node, f"and node {quoted(earlier.node)} share tensor {quoted(name)} but not its shape")

    def _interface(self) -> None:
        c = self.config
        inputs: list[tuple[str, int, list[int | None]]] = [
            (name, _INT64, [None, None]) for name in ("input_ids", "position_ids")
        ]
        outputs: list[tuple[str, int, list[int | None]]] = [("logits", _FLOAT, [None, None, c.vocab_size])]
        cache: list[int | None] = [None, c.n_kv_heads, None, c.head_dim]
        for i in range(c.n_layers):
            inputs += [(f"past_key_values.{i}.{part}", _FLOAT, cache) for part in ("key", "value")]
            outputs += [(f"present.{i}.{part}", _FLOAT, cache) for part in ("key", "value")]
        for kind, found, wanted in (("input", self.graph.input, inputs), ("output", self.graph.output, outputs)):
            self._values(kind, found, wanted)

    def _values(
        self, kind: str, found: Sequence[ValueInfoProto], wanted: list[tuple[str, int, list[int | None]]]
    ) -> None:
        if len(found) != len(wanted):
            stated = f"expected {len(wanted)}: n_layers is {self.config.n_layers} in edgerun.json"
            raise damaged(self.path, f"has {len(found)} graph {kind}s, {stated}")
        for value, (name, dtype, shape) in zip(found, wanted, strict=True):
            if value.name != name:
                raise damaged(self.path, f"has graph {kind} {quoted(value.name)}, expected {quoted(name)}")
            tensor = value.type.tensor_type
            dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
            fits = len(dims) == len(shape) and all(w is None or d == w for d, w in zip(dims, shape, strict=True))
            if tensor.elem_type != dtype or not fits:
                what = f"graph {kind} {quoted(name)} has element type {tensor.elem_type} and shape {_shape(dims)}"
                raise damaged(self.path, f"{what}, expected {dtype} and {_shape(shape)}")

    def _wrong(self, node: NodeProto, what: str) -> Exception:
        return damaged(self.path, f"node {quoted(node.name)} {what}")


def _shape(dims: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
