"""A base checkpoint with a variant's deltas added to its weights, to be exported as a plain package."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from edgerun.errors import VariantError
from edgerun.variants.coding import DenseDelta, SparseDelta

from .checkpoint import Checkpoint, QuantisedBlocks, Rows, TensorInfo
from .families import Description, Matrix


@dataclass(frozen=True)
class MergedMatrix(Matrix):
    """A matrix whose rows are the checkpoint's, in float32, plus a sparse delta in the package's row order."""

    delta: SparseDelta | None = None

    def read(self, checkpoint: Checkpoint, start: int, stop: int) -> Rows:
        stored = super().read(checkpoint, start, stop)
        rows = stored.dequantise() if isinstance(stored, QuantisedBlocks) else stored.copy()
        if self.delta is not None:
            bounds = np.concatenate([[0], np.cumsum(self.delta.counts, dtype=np.int64)])
            part = slice(bounds[start], bounds[stop])
            row = np.repeat(np.arange(stop - start), self.delta.counts[start:stop])
            rows[row, self.delta.columns[part]] += self.delta.values[part]
        return rows


def add_deltas(description: Description, deltas: Mapping[str, SparseDelta | DenseDelta]) -> Description:
    """The description with the deltas, by package names, in its weights. Raises VariantError if one has no place."""
    left = dict(deltas)

    def matrix(plain: Matrix) -> Matrix:
        delta = left.pop(plain.name, None)
        if delta is None:
            return plain
        if not isinstance(delta, SparseDelta) or delta.shape != (plain.rows, plain.columns):
            raise VariantError(f"{plain.name}: the variant has it in another shape; give the variant's own base")
        if plain.ternary is not None:
            raise VariantError(
                f"{plain.name}: a ternary layer cannot hold a variant's delta; run the base with --variant instead"
            )
        source = TensorInfo(plain.source.name, plain.source.shape, "F32", 32)
        return MergedMatrix(plain.name, source, plain.rows, plain.columns, plain.interleaved_heads, None, delta)

    def vector(name: str, plain: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        delta = left.pop(name, None)
        if delta is None:
            return plain
        if delta.values.shape != plain.shape:
            raise VariantError(f"{name}: the variant has it in another shape; give the variant's own base")
        return plain + delta.values

    layers = []
    for i, layer in enumerate(description.layers):
        at = {role: plain.name.removesuffix(".weight") for role, plain in layer.matrices.items()}
        layers.append(
            replace(
                layer,
                input_norm=vector(f"layers.{i}.input_norm.weight", layer.input_norm),
                post_attention_norm=vector(f"layers.{i}.post_attention_norm.weight", layer.post_attention_norm),
                matrices={role: matrix(plain) for role, plain in layer.matrices.items()},
                biases={role: vector(f"{at[role]}.bias", plain) for role, plain in layer.biases.items()},
                norms={role: vector(f"{at[role]}.norm.weight", plain) for role, plain in layer.norms.items()},
                head_norms={
                    role: vector(f"layers.{i}.attention.{role}.weight", plain)
                    for role, plain in layer.head_norms.items()
                },
            )
        )
    changed = replace(
        description,
        embedding=matrix(description.embedding),
        output=matrix(description.output) if description.output else None,
        final_norm=vector("final_norm.weight", description.final_norm),
        layers=layers,
    )
    if left:
        raise VariantError(f"{next(iter(left))}: the base has no such weight; give the variant's own base")
    return changed
