"""Builds the program of a graph, whatever its family, and proves what kernels trust.

Node by node: every operand is a value that an earlier node gave, of the kind and width that the operator wants; every
value is read; matrices fit the values that they multiply; all agrees with edgerun.json. Sums become part of the linear
layers that they follow, whose outputs then lie in the place of what they are added to, as a gated value lies in its
gate's: a graph that reads what is lost there is refused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from edgerun.package.config import Config
from edgerun.package.layout import Part, parts
from edgerun.package.operators import ATTENTIONS, EMBEDS, GATES, LINEARS
from edgerun.package.problem import damaged, quoted
from edgerun.package.tensors import Wanted
from edgerun.program.graph import LOGITS, POSITIONS, TOKENS, Node, check_interface, past, present, read_nodes, wrong
from edgerun.program.ops import (
    Activation,
    Attention,
    Embed,
    Gate,
    Linear,
    Matrix,
    Norm,
    Op,
    Program,
    Vector,
    reads,
    replaces,
)

if TYPE_CHECKING:
    from onnx import GraphProto

Kind = Literal["features", "cosines", "sines", "a mask"]
_LARGEST = 1 << 24
"""Output features of a matrix, at most; so that no product of sizes overflows an int64."""


class _Value(NamedTuple):
    """What a node gives: rows of ``width`` features, of the op of that index; or what attention alone reads."""

    kind: Kind
    width: int = 0
    op: int = -1


def build(path: Path, graph: GraphProto, config: Config) -> tuple[Program, dict[str, Wanted]]:
    """The program of a graph whose functions have been checked, and what its initializers must be, by name.

    path: of the file, for errors. Raises PackageError with one line that names the node, what is wrong with it and what
    to do.
    """
    check_interface(path, graph, config)
    return _Builder(path, graph, config).program()


class _Builder:
    def __init__(self, path: Path, graph: GraphProto, config: Config) -> None:
        self.path, self.config = path, config
        self.nodes = read_nodes(path, graph, config)
        self.tensors = {tensor.name for tensor in graph.initializer}
        inputs = {value.name for value in graph.input}
        if both := inputs & self.tensors:
            raise damaged(path, f"tensor {quoted(min(both))} has the name of a graph input")
        self.taken = inputs | self.tensors
        self.uses = Counter(name for node in self.nodes for name in node.inputs)
        self.values: dict[str, _Value] = {}
        self.ops: list[Op] = []
        self.sums: dict[tuple[int, str], str] = {}  # op and residual -> the node that is their sum
        self.weights: dict[str, Matrix | Vector] = {}
        self.wanted: dict[str, Wanted] = {}
        self.embedding: Matrix | None = None
        self.rotary: Vector | None = None
        self.has_mask = False
        self.n_layers = 0

    def program(self) -> tuple[Program, dict[str, Wanted]]:
        convert: dict[str, Callable[[Node], None]] = {
            "RotaryCosSin": self._rotary,
            "CausalMask": self._mask,
            "RMSNormalization": self._norm,
            "Add": self._add,
            **dict.fromkeys(EMBEDS, self._embed),
            **dict.fromkeys(LINEARS, self._linear),
            **dict.fromkeys(ATTENTIONS, self._attention),
            **dict.fromkeys(GATES, self._gate),
        }
        for node in self.nodes:
            for name in node.outputs:
                if not name or name in self.taken:
                    raise self._wrong(node, f"gives {quoted(name)}, which is no new name")
                self.taken.add(name)
            convert[node.operator](node)
        self._finish_head()
        self._check_uses()
        self._check_places()
        assert self.rotary is not None, "attention reads its cosines"
        widths = {name: value.width for name, value in self.values.items() if value.kind == "features"}
        del widths[LOGITS]
        program = Program(tuple(self.ops), widths, self.rotary, self.weights, self.config.vocab_size)
        return program, self.wanted

    # --- one method per operator --------------------------------------------------------------------------------------

    def _embed(self, node: Node) -> None:
        self._graph_inputs(node, 0, TOKENS)
        if self.embedding is not None:
            raise self._wrong(node, "is a second embedding, of which a package has one")
        self._equals(node, "N", self.config.vocab_size)
        self._equals(node, "K", self.config.hidden_size)
        self.embedding = self._matrix(node)
        self._give(node, Embed(node.name, node.outputs[0], self.embedding), self.embedding.k)

    def _rotary(self, node: Node) -> None:
        self._graph_inputs(node, 0, POSITIONS)
        if self.rotary is not None:
            raise self._wrong(node, "is a second table of rotary embeddings, of which a package has one")
        self.rotary = self._vector(node, node.inputs[1], self.config.head_dim // 2, positive=True)
        self.values[node.outputs[0]], self.values[node.outputs[1]] = _Value("cosines"), _Value("sines")

    def _mask(self, node: Node) -> None:
        """Attention is causal by position; the mask is for other runtimes."""
        self._graph_inputs(node, 0, POSITIONS, past(0)[0])
        if self.has_mask:
            raise self._wrong(node, "is a second mask, of which a package has one")
        self.has_mask = True
        self.values[node.outputs[0]] = _Value("a mask")

    def _norm(self, node: Node) -> None:
        width = self._reads(node, 0).width
        self._equals(node, "axis", -1)
        self._equals(node, "stash_type", 1)
        epsilon = self._epsilon(node)
        weight = self._vector(node, node.inputs[1], width)
        self._give(node, Norm(node.name, node.inputs[0], node.outputs[0], weight, epsilon), width)

    def _linear(self, node: Node) -> None:
        self._equals(node, "K", self._reads(node, 0).width)
        if not 1 <= node.attributes["N"] <= _LARGEST:
            raise self._wrong(node, f"has N {node.attributes['N']}, expected 1 to {_LARGEST}")
        weights = self._matrix(node)
        self._give(node, Linear(node.name, node.inputs[0], node.outputs[0], weights), weights.n)

    def _attention(self, node: Node) -> None:
        config, layer = self.config, self.n_layers
        heads = {name: getattr(config, name) for name in ("n_heads", "n_kv_heads", "head_dim")}
        for name, value in heads.items():
            self._equals(node, name, value)
        scale = float(node.attributes["scale"])
        if not (np.isfinite(scale) and scale > 0):
            raise self._wrong(node, f"has scale {scale}, expected a positive number")
        for at, n_heads in enumerate((config.n_heads, config.n_kv_heads, config.n_kv_heads)):
            width = self._reads(node, at).width
            if width != n_heads * config.head_dim:
                expected = f"expected {n_heads} heads of {config.head_dim}"
                raise self._wrong(node, f"reads {quoted(node.inputs[at])} of {width} features, {expected}")
        kinds: tuple[Kind, ...] = ("cosines", "sines", "a mask")
        shared = node.spec.inputs.index("cos")
        for at, kind in enumerate(kinds):
            self._reads(node, shared + at, kind)
        self._graph_inputs(node, shared + 3, *past(layer))
        if node.outputs[1:] != present(layer):
            raise self._wrong(node, f"does not give {' and '.join(present(layer))}")
        self.n_layers += 1
        q, k, v = node.inputs[:3]
        op = Attention(node.name, q, k, v, node.outputs[0], layer, **heads, scale=scale)
        if node.operator == "QKNormAttention":
            q_norm, k_norm = (self._vector(node, name, config.head_dim) for name in node.inputs[3:5])
            op = replace(op, q_norm=q_norm, k_norm=k_norm, epsilon=self._epsilon(node))
        self._give(node, op, config.n_heads * config.head_dim)

    def _gate(self, node: Node) -> None:
        gate, up = self._reads(node, 0).width, self._reads(node, 1).width
        if gate != up:
            raise self._wrong(node, f"reads {gate} features and {up}, expected as many of both")
        if gate != self.config.intermediate_size:
            stated = f"intermediate_size is {self.config.intermediate_size} in edgerun.json"
            raise self._wrong(node, f"gives {gate} features, but {stated}")
        if node.inputs[0] == node.inputs[1]:
            raise self._no_kernel(node, "it takes a value for its own gate")
        operands = node.inputs[0], node.inputs[1], node.outputs[0]
        activation: Activation = "SwiGLU" if node.operator == "SwiGLU" else "SquaredReLU"
        self._give(node, Gate(node.name, *operands, activation), gate)

    def _add(self, node: Node) -> None:
        """A bias or a residual: both become part of the linear layer that they follow."""
        if self.tensors.isdisjoint(node.inputs):
            self._add_residual(node)
            return
        at = 1 if node.inputs[0] in self.tensors else 0
        value = self._reads(node, at)
        op = self._unread_linear(node.inputs[at], value)
        if op is None or op.bias is not None:
            raise self._no_kernel(node, "a bias must follow a linear layer whose output nothing else reads")
        bias = self._vector(node, node.inputs[1 - at], value.width)
        self._put_sum(node, value.op, replace(op, bias=bias, y=node.outputs[0]))

    def _add_residual(self, node: Node) -> None:
        values = [self._reads(node, at) for at in (0, 1)]
        if values[0].width != values[1].width:
            raise self._wrong(node, f"adds {values[1].width} features to {values[0].width}")
        for at in (1, 0):
            update, residual = values[at], values[1 - at]
            op = self._unread_linear(node.inputs[at], update)
            name = node.inputs[1 - at]
            if op is not None and residual.op < update.op and name != op.x:
                self.sums[update.op, name] = node.name
                self._put_sum(node, update.op, replace(op, residual=name, y=node.outputs[0]))
                return
        raise self._no_kernel(
            node, "one input must be a linear layer's output that nothing else reads, the other older and not its input"
        )

    # --- operands -----------------------------------------------------------------------------------------------------

    def _give(self, node: Node, op: Op, width: int) -> None:
        """Adds an op, whose output is the node's first."""
        self.values[node.outputs[0]] = _Value("features", width, len(self.ops))
        self.ops.append(op)

    def _put_sum(self, node: Node, index: int, op: Linear) -> None:
        """Puts a linear layer that adds in the place of the one that does not; its output is the sum's alone."""
        before = self.ops[index]
        self.values[node.outputs[0]] = self.values.pop(before.y)
        self.ops[index] = op

    def _unread_linear(self, name: str, value: _Value) -> Linear | None:
        """The linear layer that gives a value, if it adds nothing to it and only one node reads it."""
        op = self.ops[value.op]
        alone = isinstance(op, Linear) and op.residual is None and self.uses[name] == 1
        return op if isinstance(op, Linear) and alone else None

    def _reads(self, node: Node, at: int, kind: Kind = "features") -> _Value:
        """The value that an input of a node is."""
        name = node.inputs[at]
        value = self.values.get(name)
        if value is None:
            raise self._wrong(node, f"reads {quoted(name)}, which no node before it gives")
        if value.kind != kind:
            raise self._wrong(node, f"reads {quoted(name)}, which is {value.kind}, expected {kind}")
        return value

    def _graph_inputs(self, node: Node, at: int, *expected: str) -> None:
        """Checks that the inputs from ``at`` on are these inputs of the graph."""
        for found, name in zip(node.inputs[at:], expected, strict=False):
            if found != name:
                raise self._wrong(node, f"reads {quoted(found)}, expected {quoted(name)}")

    def _epsilon(self, node: Node) -> float:
        """What norms add to the mean square, which is the same for all."""
        epsilon = float(node.attributes["epsilon"])
        if np.float32(epsilon) != np.float32(self.config.rms_norm_eps):
            stated = f"rms_norm_eps is {self.config.rms_norm_eps} in edgerun.json"
            raise self._wrong(node, f"has epsilon {epsilon:g}, but {stated}")
        return epsilon

    def _equals(self, node: Node, name: str, value: int) -> None:
        if node.attributes[name] != value:
            raise self._wrong(node, f"has {name} {node.attributes[name]}, expected {value}")

    def _matrix(self, node: Node) -> Matrix:
        fmt = node.spec.weights
        assert fmt is not None
        n, k = int(node.attributes["N"]), int(node.attributes["K"])
        name = node.inputs[1].rpartition(".")[0]
        found = parts(fmt, n, k)
        matrix = Matrix(name, fmt, n, k, dict(zip(found, node.inputs[1:], strict=True)))
        for (suffix, part), tensor in zip(found.items(), node.inputs[1:], strict=True):
            if tensor != f"{name}.{suffix}":
                raise self._wrong(node, f"reads tensor {quoted(tensor)}, expected {quoted(f'{name}.{suffix}')}")
            scale = fmt.startswith("ternary") and len(part.shape) == 1
            self._want(node, tensor, Wanted(part, node.name, vector=scale, positive=scale))
        self._use(node, matrix)
        return matrix

    def _vector(self, node: Node, name: str, length: int, positive: bool = False) -> Vector:
        part = Part(np.dtype("<f4"), (length,))
        self._want(node, name, Wanted(part, node.name, vector=True, positive=positive))
        vector = Vector(name, length)
        self._use(node, vector)
        return vector

    def _want(self, node: Node, name: str, wanted: Wanted) -> None:
        earlier = self.wanted.setdefault(name, wanted)
        if earlier is wanted:
            return
        if earlier.part != wanted.part:
            raise self._wrong(node, f"and node {quoted(earlier.node)} share tensor {quoted(name)} but not its shape")
        vector, positive = earlier.vector or wanted.vector, earlier.positive or wanted.positive
        self.wanted[name] = earlier._replace(vector=vector, positive=positive)

    def _use(self, node: Node, weight: Matrix | Vector) -> None:
        if self.weights.setdefault(weight.name, weight) != weight:
            raise self._wrong(node, f"uses weight {quoted(weight.name)} of another shape than a node before it")

    # --- the whole ----------------------------------------------------------------------------------------------------

    def _finish_head(self) -> None:
        """Checks that the last op gives the logits, and says so in it; and that there are as many layers as stated."""
        config = self.config
        if not self.ops or self.embedding is None:
            raise damaged(self.path, "has no embedding")
        head = self.ops[-1]
        if head.y != LOGITS:
            raise wrong(self.path, head.name, f"gives {quoted(head.y)}, expected {quoted(LOGITS)}")
        if not isinstance(head, Linear) or head.bias is not None or head.residual is not None:
            raise self._no_kernel_named(head.name, "the logits must be the output of a linear layer without a sum")
        if (head.weights.n, head.weights.k) != (config.vocab_size, config.hidden_size):
            expected = f"expected {config.vocab_size} and {config.hidden_size}"
            raise wrong(self.path, head.name, f"has N {head.weights.n} and K {head.weights.k}, {expected}")
        if not isinstance(self.ops[self.values[head.x].op], Norm) or self.uses[head.x] > 1:
            raise self._no_kernel_named(head.name, "its input must be a norm's output that nothing else reads")
        if self.n_layers != config.n_layers:
            stated = f"n_layers is {config.n_layers} in edgerun.json"
            raise damaged(self.path, f"has {self.n_layers} Attention nodes, but {stated}")
        tied = head.weights.tensors == self.embedding.tensors
        if tied != config.tied_embeddings:
            stated = f"tied_embeddings is {str(config.tied_embeddings).lower()} in edgerun.json"
            what = f"{'shares' if tied else 'does not share'} the embedding's tensors, but {stated}"
            raise wrong(self.path, head.name, what)
        self.ops[-1] = replace(head, head=True)

    def _check_uses(self) -> None:
        given = {LOGITS}.union(*(present(layer) for layer in range(self.n_layers)))
        for node in self.nodes:
            for name in node.outputs:
                if not self.uses[name] and name not in given:
                    raise self._wrong(node, f"gives {quoted(name)}, which no node reads")

    def _check_places(self) -> None:
        """No op reads a value in whose place another has put its output."""
        lost: dict[str, str] = {}
        for index, op in enumerate(self.ops):
            for name in reads(op):
                if name in lost:
                    reader = self.sums.get((index, name), op.name)
                    raise self._no_kernel_named(
                        reader, f"it reads {quoted(name)}, in whose place node {quoted(lost[name])} puts its output"
                    )
            place = replaces(op)
            if place is not None:
                lost[place] = self.sums.get((index, place), op.name)

    def _wrong(self, node: Node, what: str) -> Exception:
        return wrong(self.path, node.name, what)

    def _no_kernel(self, node: Node, why: str) -> Exception:
        return self._no_kernel_named(node.name, why)

    def _no_kernel_named(self, name: str, why: str) -> Exception:
        return damaged(self.path, f"no kernel for node {quoted(name)}: {why}")
