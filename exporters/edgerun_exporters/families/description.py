"""What a family says about a checkpoint: sizes, and where each weight lies."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ..checkpoint import Checkpoint, QuantisedBlocks, Rows, TensorInfo


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

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> Rows:
        """Rows start..stop, in the package's order."""
        if not self.interleaved_heads:
            return checkpoint.rows(self.source.name, start, stop)
        order = half_rotation_order(self.rows, self.interleaved_heads)[start:stop]
        first, last = int(order.min()), int(order.max()) + 1
        stored = checkpoint.rows(self.source.name, first, last)
        return stored.take(order - first) if isinstance(stored, QuantisedBlocks) else stored[order - first]


def half_rotation_order(rows: int, heads: int) -> npt.NDArray[np.int64]:
    """order[i] is the stored row of row i: within a head, (0, 1), (2, 3), ... become 0, 2, 4, ..., 1, 3, 5, ..."""
    return np.ascontiguousarray(np.arange(rows).reshape(heads, -1, 2).transpose(0, 2, 1)).reshape(rows)


@dataclass(frozen=True)
class Layer:
    """The weights of one transformer layer. Biases are None where the checkpoint has none."""

    input_norm: npt.NDArray[np.float32]
    post_attention_norm: npt.NDArray[np.float32]
    matrices: dict[str, Matrix]  # "q_proj" ... "down_proj"
    biases: dict[str, npt.NDArray[np.float32]]  # by the same names, in the package's row order


@dataclass(frozen=True)
class Description:
    """A decoder-only transformer with RMSNorm, RoPE, grouped attention and SwiGLU."""

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
    notes: list[str] = field(default_factory=list)

    def matrices(self) -> list[Matrix]:
        """Every weight matrix once, in the order of use."""
        of_layers = [matrix for layer in self.layers for matrix in layer.matrices.values()]
        return [self.embedding, *of_layers, *([self.output] if self.output else [])]
