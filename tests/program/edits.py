"""Changes to the graph of a tiny package: nodes put in, inputs moved, weights added."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper

from edgerun.package import layout, operators
from tests.package import tiny
from tests.package.tiny import Parts

NORM = {"axis": -1, "epsilon": 1e-5, "stash_type": 1}


def reads(parts: Parts, node: str, *inputs: str) -> None:
    """Makes a node read these values, in the place of its first ones."""
    for at, name in enumerate(inputs):
        parts.node(node).input[at] = name


def put(parts: Parts, before: str | None, op: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
    """A new node before another, or behind all; its output has its name."""
    domain = operators.DOMAIN if op in operators.OPERATORS else ""
    node = helper.make_node(op, list(inputs), [name], name=name, domain=domain, **attributes)
    nodes = parts.model.graph.node
    if domain and op not in {function.name for function in parts.model.functions}:
        parts.model.functions.extend(operators.functions([op]))
    if before is None:
        nodes.append(node)
    else:
        nodes.insert([node.name for node in nodes].index(before), node)
    return name


def put_norm(parts: Parts, before: str, x: str, name: str, width: int = 36) -> str:
    """A norm with a weight of its own."""
    weight = f"{name}.weight"
    add(parts, weight, np.linspace(0.5, 1.5, width, dtype=np.float32))
    return put(parts, before, "RMSNormalization", [x, weight], name, **NORM)


def put_linear(parts: Parts, before: str, x: str, name: str, n: int = 36, k: int = 36, fmt: str = "q8") -> str:
    """A linear layer with weights of its own."""
    tensors = tiny.random_tensors(fmt, n, k, np.random.default_rng(len(name)))
    names = [add(parts, f"{name}.weight.{part}", tensors[part]) for part in layout.parts(fmt, n, k)]
    return put(parts, before, operators.linear_operator(fmt), [x, *names], name, N=n, K=k)


def add(parts: Parts, name: str, values: np.ndarray) -> str:
    """An initializer."""
    parts.tensors[name] = values
    parts.model.graph.initializer.append(tiny._place(name, values, parts.data))
    return name


def drop(parts: Parts, name: str) -> None:
    """Takes a node out."""
    parts.model.graph.node.remove(parts.node(name))


def drop_tensor(parts: Parts, name: str) -> None:
    parts.model.graph.initializer.remove(parts.initializer(name))


def move(parts: Parts, name: str, before: str) -> None:
    """Moves a node to before another."""
    node = onnx.NodeProto.FromString(parts.node(name).SerializeToString())
    drop(parts, name)
    nodes = parts.model.graph.node
    nodes.insert([node.name for node in nodes].index(before), node)


def attribute(parts: Parts, node: str, name: str) -> onnx.AttributeProto:
    return next(a for a in parts.node(node).attribute if a.name == name)
