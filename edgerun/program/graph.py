"""The nodes of a package's graph, each checked against the signature of its operator; and the graph's interface.

What a node computes with, and whether that fits, is ``build``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edgerun.package.config import Config
from edgerun.package.operators import DOMAIN, OPERATORS, OperatorSpec
from edgerun.package.problem import damaged, quoted

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto, ValueInfoProto

LOGITS, TOKENS, POSITIONS = "logits", "input_ids", "position_ids"
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_ATTRIBUTE_TYPES = {"float": 1, "int": 2}  # AttributeProto.AttributeType
_STANDARD = {
    spec.name: spec
    for spec in (
        OperatorSpec("Add", ("x", "x"), ("y",), {}),
        OperatorSpec(
            "RMSNormalization", ("x", "scale"), ("y",), {"axis": "int", "epsilon": "float", "stash_type": "int"}
        ),
    )
}
"""ONNX's own operators that a package may use; all of their attributes are written out."""
_MOST_NODES = 64
"""Nodes of a layer, at most; those of no layer count as one more."""


class Node(NamedTuple):
    """A node that fits the signature of its operator: as many inputs and outputs, and the attributes by name."""

    name: str
    operator: str
    spec: OperatorSpec
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, int | float]


def past(layer: int) -> tuple[str, str]:
    """The graph inputs that are the cache of a layer: keys, values."""
    return f"past_key_values.{layer}.key", f"past_key_values.{layer}.value"


def present(layer: int) -> tuple[str, str]:
    """The graph outputs that are the cache of a layer, with the run's own keys and values behind it."""
    return f"present.{layer}.key", f"present.{layer}.value"


def wrong(path: Path, node: str, what: str) -> Exception:
    """The error for a node of a file: which, and what is wrong with it."""
    return damaged(path, f"node {quoted(node)} {what}")


def check_interface(path: Path, graph: GraphProto, config: Config) -> None:
    """Checks the graph's inputs and outputs: tokens, positions, logits, and the cache of every layer. Raises
    PackageError."""
    if graph.sparse_initializer:
        raise damaged(path, "holds sparse tensors, which no package has")
    inputs: list[tuple[str, int, list[int | None]]] = [(name, _INT64, [None, None]) for name in (TOKENS, POSITIONS)]
    outputs: list[tuple[str, int, list[int | None]]] = [(LOGITS, _FLOAT, [None, None, config.vocab_size])]
    cache: list[int | None] = [None, config.n_kv_heads, None, config.head_dim]
    for layer in range(config.n_layers):
        inputs += [(name, _FLOAT, cache) for name in past(layer)]
        outputs += [(name, _FLOAT, cache) for name in present(layer)]
    for kind, found, wanted in (("input", graph.input, inputs), ("output", graph.output, outputs)):
        _check_values(path, kind, found, wanted, config)


def read_nodes(path: Path, graph: GraphProto, config: Config) -> list[Node]:
    """Every node of the graph, in its order. Raises PackageError for one that is of no known operator, or that does not
    fit its signature."""
    most = _MOST_NODES * (config.n_layers + 1)
    if len(graph.node) > most:
        stated = f"expected at most {most}: n_layers is {config.n_layers} in edgerun.json"
        raise damaged(path, f"has {len(graph.node)} nodes, {stated}")
    return [_read_node(path, node) for node in graph.node]


def _read_node(path: Path, node: NodeProto) -> Node:
    name, operator, domain = node.name, node.op_type, node.domain
    inputs, outputs = tuple(node.input), tuple(node.output)
    if not all(isinstance(text, str) for text in (name, *inputs, *outputs)):
        raise damaged(path, "a name is no UTF-8")  # protobuf gives such a name as bytes
    spec = (
        OPERATORS.get(operator) if domain == DOMAIN else _STANDARD.get(operator) if domain in ("", "ai.onnx") else None
    )
    if spec is None:
        raise wrong(path, name, f"is {quoted(f'{domain}.{operator}' if domain else operator)}, {_expected(operator)}")
    if node.overload:
        raise wrong(path, name, f"has overload {quoted(node.overload)}, expected none")
    if len(inputs) != len(spec.inputs) or len(outputs) != len(spec.outputs):
        found = f"{len(inputs)} inputs and {len(outputs)} outputs"
        raise wrong(path, name, f"has {found}, expected {len(spec.inputs)} and {len(spec.outputs)}")
    return Node(name, operator, spec, inputs, outputs, _attributes(path, node, spec))


def _expected(operator: str) -> str:
    if operator in OPERATORS:
        return f"expected {DOMAIN}.{operator}"
    return f"expected {operator}" if operator in _STANDARD else "which is no operator that edgerun knows"


def _attributes(path: Path, node: NodeProto, spec: OperatorSpec) -> dict[str, int | float]:
    wanted = spec.attributes
    if not wanted and not node.attribute:
        return {}
    found = [a.name for a in node.attribute]
    if sorted(found) != sorted(wanted):
        shown = f"{quoted(', '.join(found))}, expected {quoted(', '.join(wanted))}"
        raise wrong(path, node.name, f"has attributes {shown}")
    values: dict[str, int | float] = {}
    for a in node.attribute:
        kind = wanted[a.name]
        if a.type != _ATTRIBUTE_TYPES[kind] or a.ref_attr_name:
            raise wrong(path, node.name, f"has an attribute {a.name} that is no {kind}")
        values[a.name] = a.i if kind == "int" else a.f
    return values


def _check_values(
    path: Path,
    kind: str,
    found: Sequence[ValueInfoProto],
    wanted: list[tuple[str, int, list[int | None]]],
    config: Config,
) -> None:
    if len(found) != len(wanted):
        stated = f"expected {len(wanted)}: n_layers is {config.n_layers} in edgerun.json"
        raise damaged(path, f"has {len(found)} graph {kind}s, {stated}")
    for value, (name, dtype, shape) in zip(found, wanted, strict=True):
        if value.name != name:
            raise damaged(path, f"has graph {kind} {quoted(value.name)}, expected {quoted(name)}")
        tensor = value.type.tensor_type
        dims = [d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim]
        fits = len(dims) == len(shape) and all(w is None or d == w for d, w in zip(dims, shape, strict=True))
        if tensor.elem_type != dtype or not fits:
            what = f"graph {kind} {quoted(name)} has element type {tensor.elem_type} and shape {_shape(dims)}"
            raise damaged(path, f"{what}, expected {dtype} and {_shape(shape)}")


def _shape(dims: Sequence[int | None]) -> str:
    return "[" + ", ".join("?" if d is None else str(d) for d in dims) + "]"
