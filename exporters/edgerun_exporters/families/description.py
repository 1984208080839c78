"""What a family says about a checkpoint: sizes, and where each weight lies."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint, QuantisedBlocks, Rows, TensorInfo, Trits
from ..ternary import Ternary

_Stored = TypeVar("_Stored", Rows, Trits)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix: its name in the package, the tensor that it comes from, and its size."""

    name: str
    source: TensorInfo
    rows: int
    columns: int
    interleaved_heads: int = 0
    """Not 0: the rows of that many heads are stored for RoPE on neighbouring pairs (as in GGUF) and are to be put
    back for RoPE on the two halves of a head."""
    ternary: Ternary | None = None
    """Where its trits come from, if the model was trained with ternary weights here."""

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> Rows:
        """Rows start..stop, in the package's order."""
        return self._ordered(lambda first, last: checkpoint.rows(self.source.name, first, last), start, stop)

    def floats(self, checkpoint: Checkpoint, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Rows start..stop as float32, in the package's order; ternary weights as what they stand for."""
        if self.ternary is not None:
            scale, trits = self.open_ternary(checkpoint)
            return (trits(start, stop).astype(np.float32) - 1) * scale
        rows = self.read(checkpoint, start, stop)
        return rows.dequantise() if isinstance(rows, QuantisedBlocks) else rows

    def open_ternary(self, checkpoint: Checkpoint) -> tuple[np.float32, Callable[[int, int], Trits]]:
        """The scale, and a function that gives the trits of rows start..stop in the package's order."""
        assert self.ternary is not None
        scale, read = self.ternary.open(checkpoint)
        return scale, lambda start, stop: self._ordered(read, start, stop)

    def _ordered(self, read: Callable[[int, int], _Stored], start: int, stop: int) -> _Stored:
        if not self.interleaved_heads:
            return read(start, stop)
        order = half_rotation_order(self.rows, self.interleaved_heads)[start:stop]
        first, last = int(order.min()), int(order.max()) + 1
        stored = read(first, last)
        return stored.take(order - first) if isinstance(stored, QuantisedBlocks) else stored[order - first]


def half_rotation_order(rows: int, heads: int) -> npt.NDArray[np.int64]:
    """order[i] is the stored row of row i: within a head, (0, 1), (2, 3), ... become 0, 2, 4, ..., 1, 3, 5, ..."""
    return np.ascontiguousarray(np.arange(rows).reshape(heads, -1, 2).transpose(0, 2, 1)).reshape(rows)


@dataclass(frozen=True)
class Layer:
    """The weights of one transformer layer."""

    input_norm: npt.NDArray[np.float32]
    post_attention_norm: npt.NDArray[np.float32]
    matrices: dict[str, Matrix]  # "q_proj" ... "down_proj"
    biases: dict[str, npt.NDArray[np.float32]]  # by the same names, in the package's row order, where there are any
    norms: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """By the same names: RMSNorms of a linear layer's own input (BitNet's sub-LN)."""
    head_norms: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    """"q_norm" and "k_norm", float32 [head_dim]: RMSNorms of every head of q and k before RoPE, where there are any."""


@dataclass(frozen=True)
class Description:
    """A decoder-only transformer with RMSNorm, RoPE, grouped attention and a gated MLP."""

    family: str
    name: str
    hidden_size: int
    intermediate_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    rope_theta: float
    rms_norm_eps: float
    attention_scale: float
    inv_freq: npt.NDArray[np.float32]  # [head_dim / 2], RoPE scaling included
    embedding: Matrix
    output: Matrix | None  # None: tied to the embedding
    final_norm: npt.NDArray[np.float32]
    layers: list[Layer]
    activation: str = "SwiGLU"
    """The operator that joins gate and up."""
    notes: list[str] = field(default_factory=list)

    def matrices(self) -> list[Matrix]:
        """Every weight matrix once, in the order of use."""
        of_layers = [matrix for layer in self.layers for matrix in layer.matrices.values()]
        return [self.embedding, *of_layers, *([self.output] if self.output else [])]

    def vectors(self) -> list[tuple[str, npt.NDArray[np.float32]]]:
        """Every norm and bias by its name in a package, in the order of use."""
        found = []
        for i, layer in enumerate(self.layers):
            found.append((f"layers.{i}.input_norm.weight", layer.input_norm))
            found.append((f"layers.{i}.post_attention_norm.weight", layer.post_attention_norm))
            found += [(f"layers.{i}.attention.{role}.weight", vector) for role, vector in layer.head_norms.items()]
            for kind, suffix in ((layer.norms, "norm.weight"), (layer.biases, "bias")):
                for role, vector in kind.items():
                    found.append((f"{layer.matrices[role].name.removesuffix('.weight')}.{suffix}", vector))
        return [*found, ("final_norm.weight", self.final_norm)]
