"""What `edgerun eval --against` compares with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgerun.attention.spec import FULL
from edgerun.cli.options import RuntimeOptions
from edgerun.sparsity.spec import NONE

if TYPE_CHECKING:
    from edgerun.model import Model


@contextmanager
def reference(against: str, folder: Path, model: Model, runtime: RuntimeOptions) -> Iterator[Model]:
    """The model behind `against`, to be run with full attention: the very same ("full"), the same package in float32
    ("exact"), or another."""
    if against == "full":
        yield model
        return
    other = str(folder) if against == "exact" else against
    variant = runtime.variant if against == "exact" else None
    exact = replace(runtime, compute="float32", cache="f32", variant=variant, attention=FULL, sparsity=NONE)
    with exact.load(other) as loaded:
        yield loaded


def described(model: str, runtime: RuntimeOptions, against: str | None) -> dict[str, Any]:
    """What ran, for JSON."""
    return {
        "model": model,
        "variant": runtime.variant,
        "attention": runtime.attention or FULL,
        "sparsity": runtime.sparsity or NONE,
        "against": against,
    }
