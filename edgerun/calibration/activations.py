"""Calibration of activation sparsity: for each projection the method and its threshold that fit it.

    edgerun calibrate MODEL --text FILE --policy activations

Local error curves, one Lagrangian: for each projection, method and threshold of a grid, the time that skipping saves
(bytes by the part of the columns that is left unread, counted from the break-even on) and the squared error of its
output, relative to the output, on a calibration text. An error counts by the projection's sensitivity: the KL
divergence of the model with this projection alone made sparse, divided by the error of that. At a price, every
projection takes the setting with the most saving less cost; the price is found whose KL, measured end to end on text
that was kept apart, meets the budget.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgerun.calibration.calibrate import check_budget
from edgerun.calibration.inputs import capture
from edgerun.calibration.store import write_activations
from edgerun.errors import OptionError
from edgerun.measure.evaluate import kl, log_softmax
from edgerun.model import Model
from edgerun.package.layout import dequantise, parts
from edgerun.progress import Progress, silent
from edgerun.sparsity.delta_activations import DeltaActivations
from edgerun.sparsity.method import Method
from edgerun.sparsity.policy import Chosen, Policy, make_policy, most_columns
from edgerun.sparsity.projections import TERNARY, Projection, projections
from edgerun.sparsity.threshold import Threshold
from edgerun.sparsity.traffic import weight_bytes_skipped, weight_time_saved

Array = NDArray[Any]
GRID = tuple(float(x) for x in np.geomspace(0.03, 1.2, 16))
PROBED = 0.02
"""Relative squared error, about, of the settings that sensitivities are measured with."""
PROBE_TOKENS = 64
"""Tokens that they are measured on, at most."""
TOKENS = 512
"""Tokens of a text that a package is calibrated with."""
PARTS = (0.25, 0.5, 1.0)
"""The parts of a budget for which points are sought."""
STEPS = 9
"""Halvings of the multiplier's range."""
METHODS = ("threshold", "delta")


@dataclass(frozen=True)
class Setting:
    """One of a projection's choices. saved: bytes that need not be read, in time; error: relative squared error."""

    method: str
    at: float
    saved: float
    error: float

    def made(self) -> Method:
        return Threshold(at=self.at) if self.method == "threshold" else DeltaActivations(self.at)


def calibrate(
    model: Model,
    tokens: Sequence[int],
    budgets: Sequence[float] = (0.01, 0.02, 0.03, 0.05),
    *,
    progress: Progress = silent,
) -> dict[str, Any]:
    """What ``calibrated`` keeps, for KL budgets in nats a token. The first half of the tokens (each half at least 64,
    at most the context) is calibrated on, the second measured. Raises OptionError. Nobody else may run the model."""
    found = Calibration(model, tokens, progress)
    return {"points": [point for budget in sorted(budgets) if (point := found.point(budget))], "tokens": len(tokens)}


class Calibration:
    """Error curves and sensitivities, of which settings for any budget are made."""

    def __init__(self, model: Model, tokens: Sequence[int], progress: Progress = silent) -> None:
        """As ``calibrate``."""
        half = min(len(tokens) // 2, model.context)
        if half < 64:
            raise OptionError(f"the text has {len(tokens)} tokens; calibration needs at least 128: give a longer text")
        self.columns = model.sparsities.columns()
        self.projections = projections(model.tape)
        self._progress, self._steps = progress, 2 * len(self.projections)
        self._kept = _Text(model, tokens[half : 2 * half])
        self.curves: list[list[Setting]] = []
        inputs = capture(model, tokens[:half], half // 3)
        for i, (projection, x) in enumerate(zip(self.projections, inputs, strict=True)):
            progress(i, self._steps, "error curves")
            self.curves.append(_curve(projection, _matrix(model, projection), x, self.columns[i].worth))
        text = _Text(model, tokens[: min(half, half // 3 + PROBE_TOKENS)], half // 3)
        self.sensitivities: list[float] = []
        for i, curve in enumerate(self.curves):
            progress(len(self.projections) + i, self._steps, "sensitivities")
            probe = min(curve, key=lambda setting: abs(np.log((setting.error + 1e-12) / PROBED)))
            found = text.measure([Chosen(self.projections[i], self.columns[i], probe.made())])
            self.sensitivities.append(found.kl / max(probe.error, 1e-12))

    def point(self, budget: float, methods: Sequence[str] = METHODS) -> dict[str, Any] | None:
        """The setting of these methods that saves most for a mean KL within the budget, as ``calibrated`` has it. None
        where none does."""
        best: dict[str, Any] | None = None
        low, high = 1e-12, 1e-4  # KL a byte
        for step in range(STEPS):
            self._progress(step, STEPS, f"KL {budget:g}")
            price = float(np.sqrt(low * high))
            picked = [
                _picked([one for one in curve if one.method in methods], sensitivity, price)
                for curve, sensitivity in zip(self.curves, self.sensitivities, strict=True)
            ]
            pairs = [
                (projection, columns, setting)
                for projection, columns, setting in zip(self.projections, self.columns, picked, strict=True)
                if setting is not None
            ]
            found = self._kept.measure([Chosen(p, columns, setting.made()) for p, columns, setting in pairs])
            if found.kl > budget:
                high = price
                continue
            low = price
            if best is None or found.weight_time_saved > best["weight_time_saved"]:
                chosen = {projection.name: [setting.method, setting.at] for projection, _, setting in pairs}
                best = {**found._asdict(), "methods": chosen}
        self._progress(STEPS, STEPS, f"KL {budget:g}")
        return best


def _picked(curve: Sequence[Setting], sensitivity: float, price: float) -> Setting | None:
    """The setting whose saving at a price is most above its cost; None where none is."""
    best = max(curve, key=lambda setting: price * setting.saved - sensitivity * setting.error, default=None)
    return best if best is not None and price * best.saved > sensitivity * best.error else None


def _matrix(model: Model, projection: Projection) -> Array:
    """float32 [rows of all layers, k]."""
    names = {record: site.name for site in model.tape.sites if site.kind == "linear" for record in site.records}
    matrices = []
    for record, n in zip(projection.records, projection.rows, strict=True):
        tensors = {
            part: model.package.tensor(f"{names[record]}.{part}") for part in parts(projection.fmt, n, projection.k)
        }
        matrices.append(dequantise(projection.fmt, tensors, n, projection.k))
    return np.concatenate(matrices)


def _curve(projection: Projection, matrix: Array, inputs: Array, worth: Array) -> list[Setting]:
    """The settings of a grid, with what they save and cost on these inputs [tokens, k]."""
    worth = worth[: projection.k]
    size = np.abs(inputs) * worth
    root = np.sqrt(np.square(size).mean(1, keepdims=True))
    power = np.square(inputs @ matrix.T).sum()
    n_bytes = projection.run_bytes * projection.k
    found = []
    for method in METHODS[:1] if projection.fmt in TERNARY else METHODS:
        most = most_columns(projection, DeltaActivations if method == "delta" else Threshold)
        for at in GRID:
            if method == "threshold":
                kept = size >= at * root
                missing = np.where(kept, np.float32(0), inputs)
            else:
                kept, missing = _unsent(inputs, worth, at * root, most)
            sparse = kept.sum(1) <= most  # else all are taken as they are
            if not sparse.any():
                continue
            error = np.square(missing[sparse] @ matrix.T).sum() / max(power, 1e-30)
            saved = n_bytes * (1 - kept[sparse].sum() / (most * sparse.sum())) * sparse.mean()
            found.append(Setting(method, at, float(saved), float(error)))
    return found or [Setting("threshold", 0.0, 0.0, 0.0)]


def _unsent(inputs: Array, worth: Array, limits: Array, most: int) -> tuple[Array, Array]:
    """Which inputs delta activations send, and what is missing of all."""
    sent, missing = np.empty(inputs.shape, bool), np.empty_like(inputs)
    reference = np.zeros(inputs.shape[1], np.float32)
    for t, (row, limit) in enumerate(zip(inputs, limits, strict=True)):
        moved = row - reference
        sent[t] = (np.abs(moved) * worth >= limit) if t else True
        if t == 0 or sent[t].sum() <= most:
            reference = np.where(sent[t], row, reference)
        missing[t] = row - reference
    return sent, missing


class Measured(NamedTuple):
    """kl: mean nats a token, to the dense model. The shares of the weights' bytes, and of the time to read them, that
    were not needed."""

    kl: float
    weight_bytes_skipped: float
    weight_time_saved: float


class _Text:
    """Tokens to measure with: the first ones, or a third, are prefilled, the others decoded one by one."""

    def __init__(self, model: Model, tokens: Sequence[int], first: int | None = None) -> None:
        self.model, self.tokens = model, list(tokens)
        self.first = len(tokens) // 3 if first is None else first
        self.wanted = self._log_p([])[0]

    def measure(self, chosen: Sequence[Chosen]) -> Measured:
        log_p, policy, columns = self._log_p(chosen)
        skipped = weight_bytes_skipped(self.model.tape, policy, columns.sum(0), len(columns))
        saved = weight_time_saved(self.model.tape, policy, columns)
        return Measured(float(kl(self.wanted, log_p).mean()), skipped, saved)

    def _log_p(self, chosen: Sequence[Chosen]) -> tuple[Array, Policy, Array]:
        """Log-probabilities after each decoded token [tokens, vocab_size], the policy that ran, and the columns that
        each token read [tokens, ops]."""
        session = self.model.session("none", sparsity="none")
        policy = session.sequence.policy = make_policy(self.model.tape, chosen, self.model.threads)
        session.prefill(self.tokens[: self.first])
        measured = np.zeros((2, len(session.model.tape.ops)), np.int64)
        self.model.profile = measured
        try:
            rows = [(session.decode(token).copy(), measured[1].copy()) for token in self.tokens[self.first :]]
        finally:
            self.model.profile = None
        logits, columns = (np.stack(part) for part in zip(*rows, strict=True))
        return log_softmax(logits), policy, np.diff(columns, axis=0, prepend=0)


def calibrate_package(
    folder: str | Path,
    text: str,
    *,
    budget_kl: float,
    threads: int | None = None,
    progress: Progress = silent,
) -> list[dict[str, Any]]:
    """``calibrate`` on the first TOKENS of a text, for budgets up to ``budget_kl``; written into the package.

    Gives the points, as ``calibrated`` keeps them. Raises OptionError for a text or a budget that makes no sense.
    """
    check_budget(budget_kl)
    with Model(folder, threads=threads) as model:
        tokens = model.tokenizer.encode(text, parse_special=False)[:TOKENS]
        result = calibrate(model, tokens, [budget_kl * part for part in PARTS], progress=progress)
    write_activations(Path(folder), result)
    points: list[dict[str, Any]] = result["points"]
    return points
