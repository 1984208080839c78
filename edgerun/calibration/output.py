"""What an error in a head's output does behind the output projection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgerun.package.layout import dequantise
from edgerun.program.ops import Linear, Norm

if TYPE_CHECKING:
    from edgerun.program.open import Package

F32 = NDArray[np.float32]


class OutputProjection:
    """o_proj of one layer, [hidden, n_heads * head_dim], with the norm before it, where a family has one."""

    def __init__(self, package: Package, layer: int) -> None:
        program = package.program
        given = program.attentions[layer].y
        norm = next((op for op in program.ops if isinstance(op, Norm) and op.x == given), None)
        x = given if norm is None else norm.y
        matrix = next(op.weights for op in program.ops if isinstance(op, Linear) and op.x == x)
        tensors = {part: package.tensor(name) for part, name in matrix.tensors.items()}
        weight = dequantise(matrix.format, tensors, matrix.n, matrix.k)
        self._normed = norm is not None
        if norm is not None:
            weight = weight * np.asarray(package.tensor(norm.weight.name), np.float32)
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
