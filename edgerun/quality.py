"""One budget for attention and activations: what ``quality:kl=X`` leaves out of both.

The KLs of small independent perturbations add: a KL is quadratic in what changes the logits, and what two of them have
in common averages out. (SmolLM2, 256 tokens behind 2,048: 0.0147 of attention and 0.0050 of activations were 0.0183
together, 0.0336 and 0.0180 were 0.0470, 0.0094 and 0.0050 were 0.0151.) So a calibrated setting of each whose KLs sum
to at most the budget is within it, or one of either alone. Of these, the one for which a token waits shortest for
memory, in bytes: the weights, less what leaving columns unread saves (which is less than the bytes left unread, since
short runs are read more slowly), and the keys and values of a context of TYPICAL tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgerun.attention.settings import read_settings
from edgerun.attention.spec import CALIBRATED, FULL, TYPICAL
from edgerun.package.reader import CONFIG
from edgerun.sparsity.calibrated import NAME, read_points
from edgerun.sparsity.projections import projections
from edgerun.sparsity.spec import NONE
from edgerun.sparsity.traffic import bytes_a_token

if TYPE_CHECKING:
    from edgerun.program.open import Package
    from edgerun.program.tape import Tape


def split(kl: float, package: Package, tape: Tape) -> tuple[str, str]:
    """What to write for attention and for sparsity, of a package and its tape, to spend ``kl`` nats a token; where
    nothing costs so little, what is exact. Raises PackageError for a calibration that is damaged."""
    config = package.config
    weights, cache = bytes_a_token(tape, depth := min(TYPICAL, config.context_length))
    attention = [(0.0, float(cache), FULL)]
    for setting in read_settings(config, package.folder / CONFIG):
        if setting.policy in CALIBRATED:
            read = cache * setting.bytes_share(depth, config.n_layers)
            attention.append((setting.kl, read, f"{setting.policy}:kl={setting.kl}"))
    activations = [(0.0, float(weights), NONE)]
    if NAME in config.calibration and projections(tape):
        for point in read_points(config.calibration, str(package.folder)):
            activations.append((point.kl, weights * (1 - point.time_saved), f"calibrated:kl={point.kl}"))
    _, _, best = min(
        (a_read + s_read, a_kl + s_kl, (a_spec, s_spec))
        for a_kl, a_read, a_spec in attention
        for s_kl, s_read, s_spec in activations
        if a_kl + s_kl <= kl
    )
    return best
