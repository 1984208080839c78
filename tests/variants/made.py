"""Variants of a package with random deltas, and what they add up to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edgerun.package.operators import EMBEDS, LINEARS, OPERATORS
from edgerun.program.open import Package, open_package
from edgerun.variants.store import DenseDelta, SparseDelta, write_variant
from tests.kernels.deltas import masked, top, windows

KINDS = {
    "dare 0.9": lambda n, k, rng: windows(n, k, 10, rng),
    "dare 0.95": lambda n, k, rng: windows(n, k, 20, rng),
    "dare 0.5": lambda n, k, rng: windows(n, k, 2, rng),
    "magnitude": lambda n, k, rng: top(n, k, max(1, k // 10), rng),
    "any mask": lambda n, k, rng: masked(n, k, 0.2, rng),
    "dense": lambda n, k, rng: masked(n, k, 1.0, rng),
}


def matrices(package: Package) -> dict[str, tuple[int, int]]:
    """Shapes of all weight matrices, by name."""
    found = {}
    for node in package.graph.node:
        if node.op_type in (*EMBEDS, *LINEARS):
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            found[node.input[1].rpartition(".")[0]] = (sizes["N"], sizes["K"])
    return found


def vectors(package: Package) -> dict[str, int]:
    """Lengths of all norms, by name."""
    names = [node.input[1] for node in package.graph.node if node.op_type == "RMSNormalization"]
    return {name: len(package.tensor(name)) for name in names}


def tensors(
    package: Package, kind: str, seed: int = 0, scale: float = 3.0
) -> Iterator[tuple[str, SparseDelta | DenseDelta]]:
    rng = np.random.default_rng(seed)
    for name, (n, k) in matrices(package).items():
        delta = KINDS[kind](n, k, rng)
        yield name, SparseDelta(delta.shape, delta.counts, delta.columns, delta.values * np.float32(scale))
    for name, length in vectors(package).items():
        yield name, DenseDelta(rng.normal(0, 0.1, length).astype(np.float32))


def write(folder: Path, out: Path, kind: str = "dare 0.9", seed: int = 0, **changes: Any) -> Path:
    """A variant of the package in a folder."""
    package = open_package(folder)
    said = {"base": package.config.source["fingerprint"], "method": "made", "parameters": {"seed": seed}, **changes}
    write_variant(out, tensors(package, kind, seed), **said)
    return out


def formats(package: Package) -> dict[str, str]:
    """The weight format of every matrix, by name."""
    return {
        node.input[1].rpartition(".")[0]: str(OPERATORS[node.op_type].weights)
        for node in package.graph.node
        if node.op_type in (*EMBEDS, *LINEARS)
    }
