"""What a variant is to a run: a table of what it does to each weight, which kernels look into behind an op.

The model's tape stays what it is, whatever its sequences run; see ``edgerun_kernels.record.Site``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import VariantError
from edgerun.program.tape import Site, Tape
from edgerun.variants.coding import Coded
from edgerun.variants.store import Variant
from edgerun_kernels import record
from edgerun_kernels.layouts import Input, Matrix
from edgerun_kernels.record import Term

WeightedVariant = tuple[Variant, float]


@dataclass(frozen=True, eq=False)
class VariantTable:
    """The sum of some variants times their weights.

    sites: int64 [sites of the tape], addresses, 0 where nothing changes. key: which variants and weights they are.
    arrays: all that lies there, kept alive.
    """

    sites: NDArray[np.int64]
    key: tuple[object, ...]
    arrays: list[NDArray[Any]] = field(repr=False)

    @cached_property
    def address(self) -> int:
        """Where the table lies."""
        return int(self.sites.ctypes.data)


def check(variant: Variant, tape: Tape) -> None:
    """Raises VariantError if the variant changes a weight that the model does not have, or one of another shape."""
    matrices, vectors = _shapes(tape)
    for name, coded in variant.matrices.items():
        if matrices.get(name) != coded.shape:
            raise _foreign(variant, name, list(coded.shape), matrices.get(name))
    for name, vector in variant.vectors.items():
        # The base's is padded to whole groups.
        if not (name in vectors and vectors[name] - 32 < len(vector) <= vectors[name]):
            raise _foreign(variant, name, [len(vector)], vectors.get(name))


def _foreign(variant: Variant, name: str, shape: list[int], wanted: Any) -> VariantError:
    is_there = f"has it as {wanted}" if wanted is not None else "has no such weight that a variant can change"
    return VariantError(f"{variant.path}: it changes {name} {shape}, but the model {is_there}; make the variant again")


def _shapes(tape: Tape) -> tuple[dict[str, tuple[int, int]], dict[str, int]]:
    matrices, vectors = {}, {}
    for site in tape.sites:
        op = tape.ops[site.records[-1]]
        if site.vector is not None:
            vectors[site.name] = len(site.vector)
        else:
            matrices[site.name] = (int(op[Matrix.N]), int(op[Input.K]))
    return matrices, vectors


def variant_table(tape: Tape, terms: Sequence[WeightedVariant], key: tuple[object, ...]) -> VariantTable:
    """The table of the sum of the variants times their weights; each has passed ``check``."""
    sites = np.zeros(len(tape.sites), np.int64)
    arrays: list[NDArray[Any]] = [variant.data for variant, _ in terms]
    biases = {site.records[-1]: site for site in tape.sites if site.kind == "bias"}
    for index, site in enumerate(tape.sites):
        if site.kind == "bias":
            continue
        if site.vector is not None:
            change = _vector_change(site, terms)
            entry: NDArray[Any] | None = None if change is None else (site.vector + change).astype(np.float32)
        else:
            entry = _matrix_entry(site, biases.get(site.records[-1]), terms, arrays)
        if entry is not None:
            arrays.append(entry)
            sites[index] = entry.ctypes.data
    return VariantTable(sites, key, arrays)


def _vector_change(site: Site, terms: Sequence[WeightedVariant]) -> NDArray[np.float64] | None:
    """What the variants add to a norm or a bias, padded as it is; None: nothing."""
    assert site.vector is not None
    deltas = [(variant.vectors[site.name], weight) for variant, weight in terms if site.name in variant.vectors]
    if not deltas:
        return None
    total = np.zeros(len(site.vector))
    for vector, weight in deltas:
        total[: len(vector)] += vector.astype(np.float64) * weight
    return total


def _matrix_entry(
    site: Site, bias: Site | None, terms: Sequence[WeightedVariant], arrays: list[NDArray[Any]]
) -> NDArray[np.int64] | None:
    """A ``record.Site`` and its terms; None where nothing changes."""
    found = [(v.matrices[site.name], weight) for v, weight in terms if site.name in v.matrices]
    parts = [_term(coded, weight) for coded, weight in found if len(coded.codes)]
    change = None if bias is None else _vector_change(bias, terms)
    if not parts and change is None:
        return None
    head = np.zeros(record.Site.TERMS, np.int64)
    head[record.Site.N_TERMS] = len(parts)
    if change is not None:
        added = change.astype(np.float32)
        arrays.append(added)
        head[record.Site.BIAS] = added.ctypes.data
    return np.concatenate([head, *parts])


def _term(coded: Coded, weight: float) -> NDArray[np.int64]:
    term = np.zeros(Term.COUNT, np.int64)
    term[Term.W], term[Term.D] = coded.codes.ctypes.data, coded.scales.ctypes.data
    term[Term.M] = 0 if coded.starts is None else coded.starts.ctypes.data
    term[Term.WINDOW], term[Term.BITS] = coded.window, coded.bits
    term[Term.SCALE] = int(np.float64(weight).view(np.int64))
    return term
