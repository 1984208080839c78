"""Which layers select pages for DELTA: what every layer loses when an earlier one selects for it, and the best plan.

The cost of a sparse layer is the mean squared error of its attention behind the output projection, relative to the mean
square of the exact one, times the layer's sensitivity. Costs add, so dynamic programming over the layers finds the plan
of least cost for a number of layers that read everything.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgerun.attention.delta import SPAN, choose_pages
from edgerun.calibration.capture import Capture
from edgerun.calibration.output import OutputProjection
from edgerun.progress import Progress, silent

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
MOST_QUERIES = 64


def page_errors(
    capture: Capture,
    projection: Callable[[int], OutputProjection],
    budgets: Sequence[int],
    recent: int,
    progress: Progress = silent,
) -> F64:
    """float64 [n_budgets, n_layers, n_layers]: (b, s, l) what layer l loses with the pages that layer s < l selects;
    elsewhere 0. Of the recorded queries, those at the end of the context count, at most MOST_QUERIES."""
    ends = np.flatnonzero(capture.positions >= capture.n_tokens // 2)
    rows = ends[:: -(-len(ends) // MOST_QUERIES)]
    n_layers = capture.n_layers
    errors = np.zeros((len(budgets), n_layers, n_layers))
    masks: list[NDArray[np.bool_]] = []
    for layer in range(n_layers):
        progress(layer, n_layers, "pages that layers select")
        scores, mass, parts = _by_page(capture, layer, rows)
        project = projection(layer)
        n, pages, width = len(mass), mass.shape[2], parts.shape[2]
        exact = parts.sum(axis=1)
        scale = project.norm_scale(exact)[:, None]
        whole = float(project.energy(exact / scale, 0).mean())
        if masks:
            chosen = np.stack(masks, axis=1).reshape(n, -1, pages).astype(np.float32)  # [n, selecting * budgets, pages]
            share = chosen @ mass.swapaxes(1, 2)
            dim = width // mass.shape[1]
            outputs = (chosen @ parts) / np.repeat(share, dim, axis=2)
            lost = (outputs - exact[:, None]) / scale[:, None]
            energy = project.energy(lost.reshape(-1, width), 0).reshape(n, layer, len(budgets)).mean(axis=0)
            errors[:, :layer, layer] = (energy / whole).T
        masks.append(_chosen(scores, capture.positions[rows], budgets, recent))
    progress(n_layers, n_layers, "pages that layers select")
    return errors


def _by_page(capture: Capture, layer: int, rows: NDArray[np.int64]) -> tuple[F32, F32, F32]:
    """The score of every page [n, pages]; each head's probability of it [n, n_heads, pages]; its part of the heads'
    outputs [n, pages, n_heads * head_dim]."""
    queries = capture.queries(layer)[rows]
    keys, values = capture.keys_values(layer)
    n, n_heads, dim = queries.shape
    n_kv, n_tokens, _ = keys.shape
    group, pages = n_heads // n_kv, -(-n_tokens // SPAN)
    largest = np.zeros((n, pages * SPAN), np.float32)
    mass = np.empty((n, n_heads, pages), np.float32)
    parts = np.empty((n, pages, n_heads, dim), np.float32)
    hidden = np.arange(pages * SPAN) > capture.positions[rows, None]
    for head in range(n_kv):
        padded = np.zeros((2, pages * SPAN, dim), np.float32)
        padded[:, :n_tokens] = keys[head], values[head]
        paged = padded[1].reshape(pages, SPAN, dim)
        for one in range(head * group, (head + 1) * group):
            p = queries[:, one] @ padded[0].T
            p[hidden] = -np.inf
            p = np.exp(p - p.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            largest = np.maximum(largest, p)
            by_page = p.reshape(n, pages, SPAN)
            mass[:, one] = by_page.sum(axis=2)
            parts[:, :, one] = np.matmul(by_page.swapaxes(0, 1), paged).swapaxes(0, 1)
    return largest.reshape(n, pages, SPAN).sum(axis=2), mass, parts.reshape(n, pages, -1)


def _chosen(scores: F32, positions: NDArray[np.int64], budgets: Sequence[int], recent: int) -> NDArray[np.bool_]:
    """bool [n, n_budgets, pages]"""
    chosen = np.zeros((len(scores), len(budgets), scores.shape[1]), bool)
    for row, (score, position) in enumerate(zip(scores, positions, strict=True)):
        seen = score[: position // SPAN + 1]
        for n, budget in enumerate(budgets):
            chosen[row, n, choose_pages(seen, budget, recent)] = True
    return chosen


Plan = tuple[float, tuple[int, ...], tuple[int, ...]]
"""Cost, full layers, selecting layers."""


def plans(errors: F64, sensitivity: F64, most: int) -> list[Plan]:
    """The plans of least cost with at most 1, 2, … ``most`` layers that read everything.

    errors: [n_layers, n_layers] of one budget. sensitivity: [n_layers].
    """
    n_layers = len(errors)

    @cache
    def best(layer: int, selects: int, left: int) -> Plan:
        if layer == n_layers:
            return 0.0, (), ()
        found = []
        if selects >= 0:
            cost, full, select = best(layer + 1, selects, left)
            found.append((cost + float(sensitivity[layer] * errors[selects, layer]), full, select))
        if left:
            cost, full, select = best(layer + 1, selects, left - 1)
            found.append((cost, (layer, *full), select))
            cost, full, select = best(layer + 1, layer, left - 1)
            found.append((cost, full, (layer, *select)))
        return min(found) if found else (np.inf, (), ())

    return [best(0, -1, n_exact) for n_exact in range(1, most + 1)]
