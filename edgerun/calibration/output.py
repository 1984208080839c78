"""What an error in a head's output does behind the output projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun.package.layout import dequantise
from edgerun.package.operators import OPERATORS

if TYPE_CHECKING:
    from edgerun.program.open import Package

F32 = NDArray[np.float32]


class OutputProjection:
    """o_proj of one layer, [hidden, n_heads * head_dim], with the norm before it, where a family has one."""

    def __init__(self, package: Package, layer: int) -> None:
        name = f"layers.{layer}.attention"
        node = next(node for node in package.graph.node if node.name == f"{name}.o_proj")
        spec = OPERATORS[node.op_type]
        tensors = {part: package.tensor(found) for part, found in zip(spec.inputs[1:], node.input[1:], strict=True)}
        sizes = {a.name: int(a.i) for a in node.attribute}
        weight = dequantise(str(spec.weights), tensors, sizes["N"], sizes["K"])
        norms = [n for n in package.graph.node if n.op_type == "RMSNormalization" and n.output[0] == node.input[0]]
        self._normed = bool(norms)
        if norms:
            weight = weight * np.asarray(package.tensor(norms[0].input[1]), np.float32)
        self._gram: F32 = weight.T @ weight

    def norm_scale(self, outputs: F32) -> F32:
        """float32 [n]: what the norm divides every row of ``outputs`` [n, n_heads * head_dim] by."""
        if not self._normed:
            return np.ones(len(outputs), np.float32)
        rms: F32 = np.sqrt(np.square(outputs).mean(axis=1) + np.float32(1e-12))
        return rms

    def energy(self, part: F32, first: int) -> F32:
        """float32 [n]: the squared length, projected, of ``part`` [n, m], features ``first`` and on of the outputs."""
        gram = self._gram[first : first + part.shape[1], first : first + part.shape[1]]
        lengths: F32 = np.einsum("nm,nm->n", part @ gram, part)
        return lengths
