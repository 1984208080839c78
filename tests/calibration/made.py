"""A model's configuration and settings for it, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgerun.attention.delta import Delta
from edgerun.attention.deltallm import DeltaLLM
from edgerun.attention.settings import Setting, as_json
from tests.package import tiny

SHAPE = tiny.Shape(n_layers=4, head_dim=2)
WEIGHTS = "0" * 64
"""What the configuration of ``tests.package.tiny`` says of its weights."""


def keys(theta: float = 0.5) -> DeltaLLM:
    return DeltaLLM(np.full((4, 2), theta, np.float32))


def elements() -> DeltaLLM:
    return DeltaLLM(np.ones((4, 2), np.float32), form="element", spread=np.full((4, 2, 2), 0.1, np.float32))


def pages(budget: int = 32) -> Delta:
    return Delta((0,), (1, 3), budget)


def setting(deltallm: DeltaLLM | None, delta: Delta | None, kl: float, sparsity: float = 0.5) -> Setting:
    return Setting(deltallm, delta, 4096, kl, 11.0, 10.5, sparsity, 0.7)


SETTINGS = (
    setting(keys(0.5), None, 0.02, 0.7),
    setting(keys(0.25), None, 0.01, 0.5),
    setting(elements(), None, 0.001, 0.8),
    setting(None, pages(), 0.03, 0.0),
    setting(keys(0.75), pages(), 0.04, 0.8),
)


def calibration(*settings: Setting) -> dict[str, Any]:
    """The field of edgerun.json."""
    return {"weights": WEIGHTS, "settings": [as_json(one) for one in settings]}
