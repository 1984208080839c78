"""What a model computes, op by op: dataclasses with named operands, whatever the family and whatever the kernels.

An operand is the name of a value, a row of float32 features for every token; ``Program.values`` has their widths.
Weights are ``Matrix`` and ``Vector``, which name the package's tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Activation = Literal["SwiGLU", "SquaredReLU"]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A stored weight matrix of ``n`` output features by ``k`` input features.

    name: what its tensors' names share, such as "layers.0.attention.q_proj.weight".  format: of ``package.layout``.
    tensors: part of the format -> initializer, such as "q" -> "layers.0.attention.q_proj.weight.q".
    """

    name: str
    format: str
    n: int
    k: int
    tensors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Vector:
    """A stored float32 vector: a norm's weight, a bias, rotary frequencies. name: of its initializer."""

    name: str
    length: int


@dataclass(frozen=True, slots=True)
class Embed:
    """The embedding of the tokens: y = row of ``weights`` [vocabulary, hidden]."""

    name: str
    y: str
    weights: Matrix


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS normalisation: y = x / sqrt(mean(x**2) + epsilon) * weight."""

    name: str
    x: str
    y: str
    weight: Vector
    epsilon: float


@dataclass(frozen=True, slots=True)
class Linear:
    """A linear layer: y = weights x, plus the bias and plus the residual where there are such.

    The sum takes the residual's place: no later op reads ``residual``. head: it gives the logits, of which only those
    of some rows are wanted; so its input is a norm's output that nothing else reads.
    """

    name: str
    x: str
    y: str
    weights: Matrix
    bias: Vector | None = None
    residual: str | None = None
    head: bool = False

    @property
    def format(self) -> str:
        """The weights' format, of ``package.layout``."""
        return self.weights.format


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal grouped-query attention over the cache of ``layer``, with RoPE of queries and keys.

    q: n_heads * head_dim wide.  k, v: n_kv_heads * head_dim.  y: as q.  scale: of the scores.
    q_norm, k_norm: weights [head_dim] of an RMS norm of every head, before RoPE, with ``epsilon``.
    """

    name: str
    q: str
    k: str
    v: str
    y: str
    layer: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    q_norm: Vector | None = None
    k_norm: Vector | None = None
    epsilon: float | None = None


@dataclass(frozen=True, slots=True)
class Gate:
    """The gated activation of an MLP: y = activation(gate) * up.

    It takes the place of ``gate``, which no later op reads.
    """

    name: str
    gate: str
    up: str
    y: str
    activation: Activation


Op = Embed | Norm | Linear | Attention | Gate


def reads(op: Op) -> tuple[str, ...]:
    """The values that an op reads, by their names; its residual last."""
    if isinstance(op, Embed):
        return ()
    if isinstance(op, Norm):
        return (op.x,)
    if isinstance(op, Linear):
        return (op.x,) if op.residual is None else (op.x, op.residual)
    if isinstance(op, Attention):
        return (op.q, op.k, op.v)
    return (op.gate, op.up)


def replaces(op: Op) -> str | None:
    """The value in whose place an op's output lies, which is lost with it."""
    return op.residual if isinstance(op, Linear) else op.gate if isinstance(op, Gate) else None


@dataclass(frozen=True)
class Program:
    """A checked model. Every value is defined by one op before any other reads it, and is there until its last reader.

    ops: in the order in which they run; the last is the head.  values: name -> width, but for the logits.
    rotary: the inverse frequencies, [head_dim / 2].  weights: every weight once, by name, in the order of use.
    vocab_size: logits of a row.
    """

    ops: tuple[Op, ...]
    values: Mapping[str, int]
    rotary: Vector
    weights: Mapping[str, Matrix | Vector]
    vocab_size: int

    @cached_property
    def attentions(self) -> tuple[Attention, ...]:
        """The attention ops, by layer. All have the same heads."""
        return tuple(op for op in self.ops if isinstance(op, Attention))

    @property
    def n_layers(self) -> int:
        """The number of layers that keep keys and values."""
        return len(self.attentions)

    @property
    def n_heads(self) -> int:
        """The query heads of every layer."""
        return self.attentions[0].n_heads

    @property
    def n_kv_heads(self) -> int:
        """The heads of keys and values of every layer."""
        return self.attentions[0].n_kv_heads

    @property
    def head_dim(self) -> int:
        """The features of every head."""
        return self.attentions[0].head_dim

    @property
    def head(self) -> Linear:
        """The output head."""
        last = self.ops[-1]
        assert isinstance(last, Linear)
        return last
