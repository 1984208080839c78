"""Several variants of one base as one: the sum of their deltas with weights (task arithmetic, arXiv 2212.04089)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np

from edgerun.errors import OptionError, VariantError
from edgerun.variants.coding import DenseDelta, SparseDelta
from edgerun.variants.elements import from_keys, scaled, summed, together
from edgerun.variants.library import find
from edgerun.variants.spec import parse
from edgerun.variants.store import Variant, open_variant, write_variant
from edgerun.variants.ties import ties

Rule = Callable[[Sequence[SparseDelta], Sequence[float]], SparseDelta]
"""How the sparse deltas of one matrix, and their weights, become one."""


def terms(spec: str) -> list[tuple[Variant, float]]:
    """The variants of "a:0.5+b:0.5" with their weights. Raises VariantError unless they belong to one base."""
    found = [(open_variant(find(name)), weight) for name, weight in parse(spec)]
    if not found:
        raise OptionError(f"variant {spec!r} has nothing to merge; give variants with weights, such as a:0.5+b:0.5")
    first = found[0][0]
    for variant, _ in found:
        if variant.base != first.base:
            raise VariantError(
                f"{variant.path}: it is a variant of another base than {first.path}; merge variants of one base"
            )
    return found


def merged(found: Sequence[tuple[Variant, float]], rule: Rule) -> Iterator[tuple[str, SparseDelta | DenseDelta]]:
    """The tensors of the merged variant, one at a time; vectors are always added up."""
    names = list(dict.fromkeys(name for variant, _ in found for name in variant.names()))
    for name in names:
        parts = [(variant.delta(name), weight) for variant, weight in found if name in variant.names()]
        sparse = [(delta, weight) for delta, weight in parts if isinstance(delta, SparseDelta)]
        dense = [delta.values * np.float32(weight) for delta, weight in parts if isinstance(delta, DenseDelta)]
        shapes = {delta.shape for delta, _ in sparse} | {vector.shape for vector in dense}
        if len(shapes) != 1 or (sparse and dense):
            raise VariantError(f"{found[-1][0].path}: {name} has another shape there than in {found[0][0].path}")
        if sparse:
            yield name, rule([delta for delta, _ in sparse], [weight for _, weight in sparse])
        else:
            yield name, DenseDelta(np.sum(dense, axis=0, dtype=np.float32))


def task_arithmetic(deltas: Sequence[SparseDelta], weights: Sequence[float]) -> SparseDelta:
    """sum_i weights[i] * deltas[i]"""
    keys, _, values = together([scaled(delta, weight) for delta, weight in zip(deltas, weights, strict=True)])
    return from_keys(deltas[0].shape, *summed(keys, values))


def describe(found: Sequence[tuple[Variant, float]], **more: object) -> dict[str, object]:
    """What a merged variant's file says of its parts."""
    parts = [
        {"name": variant.name, "weight": weight, "method": variant.method, "parameters": dict(variant.parameters)}
        for variant, weight in found
    ]
    return {"parts": parts, **more}


def rules() -> dict[str, Rule]:
    """The rules of merging, by the names that users know."""
    return {"task-arithmetic": task_arithmetic, "ties": ties}


def write_merged(
    spec: str, out: str | os.PathLike[str], *, method: str = "task-arithmetic", bits: int = 8, **parameters: object
) -> None:
    """Writes the merged variant as a variant file. method: one of ``rules``. Raises VariantError, OptionError."""
    if method not in rules():
        raise OptionError(f"merge method is {method!r}; it must be one of {', '.join(rules())}")
    found = terms(spec)
    rule = partial(rules()[method], **parameters) if parameters else rules()[method]
    base = found[0][0].base
    write_variant(
        out, merged(found, rule), base=base, method=method, parameters=describe(found, **parameters), bits=bits
    )
