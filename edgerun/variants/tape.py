"""A variant's tape: the base's records, with records of sparse deltas behind those of the layers that they add to.

The base's tape stays what it is, so sessions without a variant run what they always ran. A run needs nothing but the
other tape's address.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgerun.errors import VariantError
from edgerun.lowering.lower import ALWAYS
from edgerun.lowering.tape import Site, Tape
from edgerun.variants.coding import Coded
from edgerun.variants.store import Variant
from edgerun_kernels.record import Field, Flag, Op

_OTHERS_WROTE = (Op.GATHER_COLUMNS, Op.LINEAR_TERNARY_TRIPLES)
"""Layers whose outputs other threads may have written than those that add to them."""
_VECTOR_FIELDS = {"norm": Field.W, "bias": Field.BIAS, "q_norm": Field.Q_NORM, "k_norm": Field.K_NORM}
Term = tuple[Variant, float]


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
            matrices[site.name] = (int(op[Field.N]), int(op[Field.K]))
    return matrices, vectors


def with_deltas(tape: Tape, terms: Sequence[Term]) -> Tape:
    """The tape of the base plus the sum of the variants times their weights; each has passed ``check``."""
    ops = [np.array(op) for op in tape.ops]
    behind: dict[int, list[NDArray[np.int64]]] = {}
    arrays: list[NDArray[Any]] = [*tape.arrays, *(variant.data for variant, _ in terms)]
    for site in tape.sites:
        if site.vector is not None:
            _add_vectors(site, terms, ops, arrays)
            continue
        for variant, weight in terms:
            coded = variant.matrices.get(site.name)
            if coded is not None and len(coded.codes):
                record = _record(site, ops[site.records[-1]], coded, weight)
                behind.setdefault(site.records[-1], []).append(record)
    records, names = [], []
    for i, op in enumerate(ops):
        added = behind.get(i, [])
        records += [op, *added]
        names += [tape.names[i], *[f"{tape.names[i]}.delta"] * len(added)]
        if added:
            # Threads add to what they wrote themselves, and others wait for the sum.
            added[-1][Field.BARRIER] = op[Field.BARRIER]
            op[Field.BARRIER] = ALWAYS if op[Field.CODE] in _OTHERS_WROTE else 0
    return replace(tape, ops=np.ascontiguousarray(np.stack(records)), names=tuple(names), arrays=arrays)


def _add_vectors(site: Site, terms: Sequence[Term], ops: list[Any], arrays: list[NDArray[Any]]) -> None:
    """Puts the sum of a norm or bias and its deltas in its place."""
    assert site.vector is not None
    deltas = [(variant.vectors[site.name], weight) for variant, weight in terms if site.name in variant.vectors]
    if not deltas:
        return
    total = site.vector.astype(np.float64)
    for vector, weight in deltas:
        total[: len(vector)] += vector.astype(np.float64) * weight
    changed = total.astype(np.float32)
    arrays.append(changed)
    for record in site.records:
        ops[record][_VECTOR_FIELDS[site.kind]] = changed.ctypes.data


def _record(site: Site, op: NDArray[np.int64], coded: Coded, weight: float) -> NDArray[np.int64]:
    record = np.zeros(Field.COUNT, np.int64)
    for key in (Field.Y, Field.Y_STRIDE, Field.N, Field.K, Field.FLAGS):
        record[key] = op[key]
    record[Field.FLAGS] |= Flag.ACCUMULATE
    record[Field.CODE] = Op.EMBED_DELTA if site.kind == "embedding" else Op.SPARSE_DELTA
    record[Field.X], record[Field.X_STRIDE], record[Field.X_PRIVATE] = site.x
    record[Field.W], record[Field.D] = coded.codes.ctypes.data, coded.scales.ctypes.data
    record[Field.M] = 0 if coded.starts is None else coded.starts.ctypes.data
    record[Field.WINDOW], record[Field.BITS] = coded.window, coded.bits
    record[Field.SCALE] = int(np.float64(weight).view(np.int64))
    return record
