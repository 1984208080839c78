"""Plans for DELTA: candidates of rising cost, from what layers lose with each other's pages and from plain patterns."""

from __future__ import annotations

from edgerun.attention.delta import SPAN, Delta
from edgerun.calibration.pages import F64, plans

RECENT = 8
REFRESHES = (1, 2, 4, 8)
"""Tokens for which selecting layers keep their choice that are tried."""
SHARES = (0.02, 0.03, 0.045, 0.06, 0.075, 0.09, 0.12, 0.18, 0.25, 0.5)
"""Budgets that are tried, in parts of the context."""


def budgets(context: int) -> list[int]:
    """Pages, ascending: more than are recent, fewer than there are."""
    pages = context // SPAN
    wanted = {round(share * pages) for share in SHARES}
    return sorted(budget for budget in wanted if RECENT < budget < pages)


def candidates(
    errors: F64, sensitivity: F64, budget_pages: list[int], context: int, most: int, refresh: int = 1
) -> list[Delta]:
    """The plans that nothing cheaper is expected to be better than, cheapest first. errors: of ``pages.page_errors``.
    most: layers that read everything."""
    n_layers = len(sensitivity)
    found: list[tuple[float, float, Delta]] = []
    for table, budget in zip(errors, budget_pages, strict=True):
        for cost, full, select in plans(table, sensitivity, max(1, most)):
            if select:
                delta = Delta(full, select, budget, RECENT, refresh)
                found.append((delta.share_read(n_layers, context), cost, delta))
    best: list[Delta] = []
    least = float("inf")
    for _, cost, delta in sorted(found, key=lambda one: one[:2]):
        if cost < least:
            least = cost
            best.append(delta)
    return best
