"""The search: settings of each policy within a budget, found on one part of a text, their cost measured on another."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgerun.attention.delta import Delta
from edgerun.attention.deltallm import Form
from edgerun.attention.settings import Setting, parameters
from edgerun.attention.spec import Attention
from edgerun.calibration.capture import Capture
from edgerun.calibration.curves import F64, Layer
from edgerun.calibration.journal import Journal
from edgerun.calibration.measure import Cost, Reference
from edgerun.calibration.output import OutputProjection
from edgerun.calibration.pages import page_errors
from edgerun.calibration.plans import RECENT, REFRESHES, budgets, candidates
from edgerun.calibration.repeats import MOST, MOST_SHARED, repeated
from edgerun.calibration.thetas import SINKS, WINDOW, Curves, joined, layer_curves
from edgerun.progress import Progress

if TYPE_CHECKING:
    from edgerun.model import Model

Policy = Literal["deltallm", "deltallm-element", "delta", "both"]
QUERIES = 192
"""Positions whose queries local curves are measured with."""
DECODED = 256
"""Tokens, at the end of the context, that DELTA is measured with."""
PROBE = 0.012
"""What a saved key may cost locally where one layer's sensitivity is measured: a perturbation well above rounding."""
TEXTS: dict[str, tuple[bool, int | None]] = {
    "beginning": (False, 2048),
    "all": (False, None),
    "decoded": (False, None),
    "repeated": (False, None),
    "held": (True, None),
    "held decoded": (True, None),
}
"""What is measured on: whether of the held-out text, and how many tokens at most. Of those that are decoded the last
DECODED count, of the one that repeats itself what it repeats, else the last three quarters."""
RUNGS = (1, 0.75, 0.5, 0.25)
"""Parts of a budget that settings are kept for: held-out text may cost more, and users may want to pay less."""
MOST_COMPACT = 1 / 6
"""Layers, over all, that keep DeltaLLM's runs beside a cache that DELTA needs whole: they keep 4 to 6 keys of 10, and
memory beside the cache should stay below a tenth of it."""
DOUBLINGS, HALVINGS = 8, 2
"""Steps of a price until a budget is passed, and between the two prices around it."""


class Search:
    """One model and its two texts, tokens of equal length: ``searched`` to choose by, ``held`` to report costs on.

    journal: keeps what was found. progress: is told of every part of the work.
    """

    def __init__(
        self, model: Model, searched: Sequence[int], held: Sequence[int], journal: Journal, progress: Progress
    ) -> None:
        self._model, self._tokens, self._held = model, list(searched), list(held)
        self._journal, self._progress = journal, progress
        self._n_layers = model.package.config.n_layers
        self._references: dict[str, Reference] = {}

    def settings(self, policy: Policy, budget: float) -> list[Setting]:
        """What one policy reaches within ``budget``, nats a token: the most that it can leave out first."""
        if policy in ("delta", "both"):
            text = "held decoded"
            found = self._with_pages(budget) if policy == "both" else self._pages(budget, self._n_layers // 2)
        else:
            text = "held"
            curves = self._curves("element" if policy == "deltallm-element" else "key")
            found = self._ladder(
                lambda price: Attention("calibrated", curves.policy(curves.points(self._sensitivity, price))),
                budget,
                "all",
            )
            if policy == "deltallm-element":
                del found[1:]  # its tables are large, and it saves no bytes
        settings = [self._setting(attention, text) for attention in found]
        return [setting for setting in settings if setting.sparsity > 0 or setting.read_share < 1]

    def _with_pages(self, budget: float) -> list[Attention]:
        """DELTA for half of the budget, and for the rest DeltaLLM in the layers that read everything."""
        most = int(self._n_layers * MOST_COMPACT)
        delta = next((attention.delta for attention in self._pages(budget / 2, most)), None)
        if delta is None:
            return []
        exact = (*delta.full, *delta.select)
        curves = self._curves("key")

        def policy(price: float) -> Attention:
            keys = curves.policy(curves.points(self._sensitivity, price, exact))
            return Attention("calibrated", keys, delta)

        return self._ladder(policy, budget, "decoded")

    # --- what is measured once ----------------------------------------------------------------------------------------

    @cached_property
    def _capture(self) -> Capture:
        n = len(self._tokens)
        first = min(n // 4, n - 1)
        positions = np.unique(np.linspace(first, n - 1, QUERIES).astype(np.int64))
        return Capture(self._model, self._tokens, positions, self._progress)

    def _projection(self, layer: int) -> OutputProjection:
        return OutputProjection(self._model.package, layer)

    def _curves(self, form: Form) -> Curves:
        layers = []
        for layer in range(self._n_layers):
            self._progress(layer, self._n_layers, f"curves of all heads, form {form}")
            layers.append(self._journal.find(f"curves {form} {layer}", partial(self._layer_curves, layer, form)))
        self._progress(self._n_layers, self._n_layers, f"curves of all heads, form {form}")
        return joined(layers)

    def _layer_curves(self, layer: int, form: Form) -> dict[str, object]:
        capture = self._capture
        keys, values = capture.keys_values(layer)
        recorded = Layer(
            capture.positions, capture.queries(layer), keys, values, self._projection(layer), WINDOW, SINKS
        )
        return layer_curves(recorded, form)

    @cached_property
    def _sensitivity(self) -> F64:
        """float64 [n_layers]: divergence when a layer alone is sparse, over its local error; the median of the others
        where nothing can be left out."""
        curves = self._curves("key")
        n_heads = curves.saved.shape[1]
        found = np.full(self._n_layers, np.nan)
        for layer in range(self._n_layers):
            self._progress(layer, self._n_layers, "sensitivity of layers")
            points = curves.points(np.ones(self._n_layers), PROBE * self._n_layers * n_heads, (layer,))
            error = curves.errors(points)[layer]
            if error > 0:
                alone = Attention("calibrated", curves.policy(points))
                found[layer] = self._cost(alone, "beginning").kl / error
        self._progress(self._n_layers, self._n_layers, "sensitivity of layers")
        known = found[np.isfinite(found)]
        return np.where(np.isfinite(found), found, np.median(known) if len(known) else 1.0)

    def _cost(self, attention: Attention, text: str) -> Cost:
        """What a policy costs on one of TEXTS; from the journal if it is there."""
        digest = hashlib.sha256(json.dumps(parameters(attention.deltallm, attention.delta)).encode()).hexdigest()
        found = self._journal.find(f"cost {text} {digest[:20]}", lambda: asdict(self._reference(text).cost(attention)))
        return Cost(**found)

    def _charged(self, attention: Attention, text: str, budget: float) -> float:
        """The divergence that a policy costs on one of TEXTS; infinity where it is decoded and does not find again what
        stood far back, which is looked at within the budget only."""
        kl = self._cost(attention, text).kl
        if kl > budget or text != "decoded" or not self._repeated[1]:
            return kl
        most = MOST if attention.deltallm is None else MOST_SHARED
        return kl if self._cost(attention, "repeated").kl <= most else np.inf

    @cached_property
    def _repeated(self) -> tuple[list[int], int]:
        return repeated(self._tokens)

    def _reference(self, text: str) -> Reference:
        if text not in self._references:
            held, most = TEXTS[text]
            tokens = (self._held if held else self._tokens)[:most]
            one_by_one = text.endswith(("decoded", "repeated"))
            n_last = DECODED
            if text == "repeated":
                tokens, n_last = self._repeated
            first = max(1, len(tokens) - 1 - n_last) if one_by_one else max(1, len(tokens) // 4)
            self._references[text] = Reference(self._model, tokens, first, one_by_one=one_by_one)
        return self._references[text]

    def _setting(self, attention: Attention, text: str) -> Setting:
        cost = self._cost(attention, text)
        exact = self._journal.find(f"exact {text}", lambda: self._reference(text).perplexity)
        return Setting(
            attention.deltallm,
            attention.delta,
            context=len(self._held),
            kl=cost.kl,
            perplexity=cost.perplexity,
            exact_perplexity=exact,
            sparsity=cost.sparsity,
            read_share=cost.read_share,
        )

    # --- searches -----------------------------------------------------------------------------------------------------

    def _ladder(self, make: Callable[[float], Attention], budget: float, text: str) -> list[Attention]:
        """Settings by their price: the highest within the budget, and those within RUNGS of it."""
        tried: dict[float, float] = {}

        def within(price: float) -> bool:
            self._progress(len(tried), DOUBLINGS + HALVINGS, "prices of a saved key")
            tried[price] = self._charged(make(price), text, budget)
            return tried[price] <= budget

        low, high = _around(within, budget)
        for _ in range(HALVINGS if low and high < np.inf else 0):
            middle = float(np.sqrt(low * high))
            low, high = (middle, high) if within(middle) else (low, middle)
        self._progress(DOUBLINGS + HALVINGS, DOUBLINGS + HALVINGS, "prices of a saved key")
        rungs: list[float] = []
        for part in RUNGS:
            fits = [price for price, kl in tried.items() if kl <= budget * part]
            if fits and max(fits) not in rungs:
                rungs.append(max(fits))
        return [make(price) for price in rungs]

    def _pages(self, budget: float, most: int) -> list[Attention]:
        """The plan of DELTA that reads least within the budget, with at most so many layers that read everything; none
        if there is none."""
        n = len(self._tokens)
        pages = budgets(n)
        if not pages:
            return []
        errors = np.array(
            self._journal.find(
                "pages",
                lambda: page_errors(self._capture, self._projection, pages, RECENT, self._progress).tolist(),
            )
        )
        best: tuple[float, float, Attention] | None = None
        weights = np.ones(self._n_layers), self._sensitivity  # neither predicts better for every model
        for refresh, weight in product(REFRESHES, weights):
            found = self._cheapest(candidates(errors, weight, pages, n, most, refresh), budget)
            if found is not None and (best is None or found[:2] < best[:2]):
                best = found
        return [] if best is None else [best[2]]

    def _cheapest(self, plans: list[Delta], budget: float) -> tuple[float, float, Attention] | None:
        """The first of plans, ordered by cost, within the budget: (share read, divergence, plan)."""
        within: dict[int, tuple[float, float, Attention]] = {}
        low, high = 0, len(plans)  # plans below low cost too much
        while low < high:
            self._progress(low, len(plans), "plans of DELTA")
            middle = (low + high) // 2
            attention = Attention("calibrated", delta=plans[middle])
            kl = self._charged(attention, "decoded", budget)
            if kl <= budget:
                high = middle
                within[middle] = (plans[middle].share_read(self._n_layers, len(self._tokens)), kl, attention)
            else:
                low = middle + 1
        self._progress(len(plans), len(plans), "plans of DELTA")
        return within.get(low)


def _around(within: Callable[[float], bool], start: float) -> tuple[float, float]:
    """Two prices, a factor of 2 apart, the first within, the second not; 0 or infinity where there is none."""
    low, high = 0.0, np.inf
    price = start
    for _ in range(DOUBLINGS):
        if within(price):
            low = price
            if high < np.inf:
                break
            price *= 2
        else:
            high = price
            if low:
                break
            price /= 2
    return low, high
