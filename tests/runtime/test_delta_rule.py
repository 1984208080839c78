"""DELTA's choice of pages against what the authors' own code chose."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgerun.attention.delta import choose_pages, page_scores

RECORDED = Path(__file__).parents[1] / "data" / "delta_choices.npz"


def test_the_authors_code_chooses_the_same_pages() -> None:
    with np.load(RECORDED) as archive:
        logits, positions, chosen, recent = (archive[key] for key in ("logits", "positions", "chosen", "recent"))
    assert chosen.shape == (5, 4, 12)
    for by_position, wanted in zip(logits, chosen, strict=True):
        for scores, position, pages in zip(by_position, positions, wanted, strict=True):
            seen = scores[:, : position + 1].astype(np.float32)
            p = np.exp(seen - seen.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            np.testing.assert_array_equal(choose_pages(page_scores(p), len(pages), int(recent)), pages)
