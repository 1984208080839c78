"""DAREx's decisions (Deng et al., arXiv 2410.09344): which method for a delta, and which q."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgerun.variants.darex_q import ETAS, candidates, first_best, layer_q

from .batch import Batch
from .calibrate import Candidate, Change, Inputs, compare, delta_sums, record
from .pair import Pair
from .sparsify import Sparsify, by_chance

LARGE = 0.01
"""Mean |delta| above which DARE fails: it works to 0.005 (fine-tuning), and not at 0.03 (continued pre-training)."""
MODERATE = 0.9
"""Drop rates up to which plain DARE costs next to nothing where deltas are small."""
Step = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Choice:
    """How deltas become sparse, what is written into the file about it, and what was measured."""

    sparsify: Sparsify
    parameters: dict[str, object] = field(default_factory=dict)
    quality: dict[str, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def method_for(pair: Pair, p: float, step: Step) -> tuple[str, str]:
    """The method that DAREx's tree leads to for a delta that is there already, and why."""
    mean = mean_delta(pair, step)
    if mean > LARGE:
        return "wanda", f"deltas are large (mean |delta| {mean:.4f}, above {LARGE}): importance instead of chance"
    if p <= MODERATE:
        return "dare", f"deltas are small (mean |delta| {mean:.4f}) and the drop rate moderate: plain DARE"
    return "darex-q", f"deltas are small (mean |delta| {mean:.4f}) and the drop rate high: DARE with a q of its own"


def mean_delta(pair: Pair, step: Step) -> float:
    """Mean |delta| over the matrices that were trained."""
    total, count = 0.0, 0
    matrices = pair.description.matrices()
    for i, matrix in enumerate(matrices):
        for start, stop in pair.blocks(matrix):
            delta = pair.delta(matrix, start, stop)
            if delta is not None:
                total += float(np.abs(delta).sum(dtype=np.float64))
                count += delta.size
        step(i + 1, len(matrices), f"Comparing {matrix.name}")
    return total / max(1, count)


def global_q(pair: Pair, p: float, seed: int, batch: Batch, *, labelled: bool, step: Step) -> Choice:
    """DAREx-q with one q: by the score on labelled examples, or by the change of outputs on an unlabelled batch."""
    qs = candidates(p)
    dare = by_chance(p, seed, 1 - p)
    tried = [Candidate(dare, (1 - p) / q) for q in qs]
    changes = compare(pair, batch, tried, lambda done, total: step(done, total, f"Trying {len(qs)} values of q"))
    best = _best(changes, labelled)
    if labelled:
        note = f"q = {qs[best]:.4g} ({1 - p:.4g} is DARE's): {changes[best].exact:.0%} of the labelled examples right"
        note += f", DARE {changes[0].exact:.0%}"
    else:
        note = f"q = {qs[best]:.4g} ({1 - p:.4g} is DARE's): KL to the fine-tuned model {changes[best].kl:.4f} nats"
        note += f", DARE {changes[0].kl:.4f}"
    return Choice(
        by_chance(p, seed, qs[best]),
        {"q": qs[best], "q_chosen_by": "labels" if labelled else "output change"},
        _quality(changes[best], labelled),
        [note],
    )


def layer_qs(pair: Pair, p: float, seed: int, batch: Batch, *, labelled: bool, step: Step) -> Choice:
    """DAREx-q with a q for each layer by the analytic rule; its eta by the same measure as a global q."""
    inputs = record_inputs(pair, batch, step)
    sums = delta_sums(pair, inputs.means)
    names = [matrix.name for matrix in pair.description.matrices()]
    tables = [{n: layer_q(sums[n], p, eta) if n in sums else 1 - p for n in names} for eta in ETAS]
    dare = by_chance(p, seed, 1 - p)
    tried = [Candidate(dare, {name: (1 - p) / q for name, q in table.items()}) for table in tables]
    changes = compare(pair, batch, tried, lambda done, total: step(done, total, f"Trying {len(ETAS)} values of eta"))
    best = _best(changes, labelled)
    used = [tables[best][name] for name in sums]
    note = f"eta = {ETAS[best]:g}: q from {min(used, default=1 - p):.4g} to {max(used, default=1 - p):.4g}, "
    note += f"KL to the fine-tuned model {changes[best].kl:.4f} nats"
    return Choice(
        by_chance(p, seed, tables[best]),
        {"eta": ETAS[best], "q": {name: round(tables[best][name], 6) for name in sums}},
        _quality(changes[best], labelled),
        [note],
    )


def record_inputs(pair: Pair, batch: Batch, step: Step) -> Inputs:
    """Inputs of the base's linear layers on a batch."""
    return record(pair, batch, lambda done, total: step(done, total, "Recording activations"))


def _best(changes: list[Change], labelled: bool) -> int:
    if not labelled:
        return first_best(change.kl for change in changes)
    # Many give the same share: of these, the one that is surest of the right tokens.
    most = max(change.exact for change in changes)
    return first_best(-change.logprob if change.exact == most else np.inf for change in changes)


def _quality(change: Change, labelled: bool) -> dict[str, object]:
    if labelled:
        return {"labelled_exact": round(change.exact, 4), "labelled_logprob": round(change.logprob, 5)}
    return {"kl_to_finetuned": round(change.kl, 6)}
