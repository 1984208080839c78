"""A real fine-tune of the real model, as a file of 2 MB: what the base never answers, the variant does."""

from __future__ import annotations

from pathlib import Path

import pytest

import edgerun
from edgerun.variants.store import open_variant
from tests.cli.conftest import ROOT

VARIANT = ROOT / "tests" / "data" / "variants" / "dates.safetensors"


def test_dates(smollm2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DARE at p = 0.99 of examples/finetune.py's first task, on sentences whose years training has not seen."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    tasks = __import__("finetune_tasks")
    variant = open_variant(VARIANT)
    assert variant.parameters["drop"] == 0.99 and variant.bytes < 0.012 * 2 * 134_515_008  # of the model in bfloat16
    with edgerun.load(smollm2) as model:
        base, tuned = model.session(), model.session(variant=VARIANT)
        for prompt, answer in tasks.examples("dates", 8, "test"):
            messages = [{"role": "user", "content": prompt}]
            assert tuned.chat(messages, temperature=0, max_tokens=16).read() == answer
            assert base.chat(messages, temperature=0, max_tokens=16).read() != answer
