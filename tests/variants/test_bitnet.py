"""Variants of a BitNet: deltas beside ternary layers, those whose columns are skipped too."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgerun import Model
from edgerun.program.open import open_package
from edgerun.variants.store import write_variant
from edgerun_exporters import export

from .made import formats, tensors

TOKENS = [int(t) for t in np.random.default_rng(0).integers(0, 90, 40)]


@pytest.mark.parametrize("compact", [False, True])
def test_a_delta_beside_ternary_layers(compact: bool, tmp_path: Path) -> None:
    """Prefill and decode agree, and every number of threads gives the same bits."""
    export(Path(__file__).parents[1] / "data" / "bitnet", tmp_path / "package", compact=compact)
    package = open_package(tmp_path / "package")
    assert "ternary_columns" in formats(package).values()
    known = package.config.source["fingerprint"]
    write_variant(tmp_path / "x", tensors(package, "dare 0.9", scale=0.5), base=known, method="m", parameters={})
    results = []
    for threads in (1, 2):
        with Model(tmp_path / "package", threads=threads) as model:
            base, session = model.session(), model.session(tmp_path / "x")
            plain = np.concatenate([rows.copy() for rows in base.score(TOKENS)])
            whole = np.concatenate([rows.copy() for rows in session.score(TOKENS)])
            session.reset()
            steps = np.stack([session.decode(token).copy() for token in TOKENS])
            assert np.abs(whole - plain).max() > 0.01 * np.abs(plain).max()
            assert np.abs(whole - steps).max() <= 0.05 * np.abs(whole).max()
            results.append(np.concatenate([whole, steps]))
    np.testing.assert_array_equal(*results)
