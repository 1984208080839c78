"""What all tests share: the real model, fetched once into the user's own cache, and the text it is measured on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The package folder of the default model. Skips without a network, but never in continuous integration."""
    from edgerun.errors import HubError
    from edgerun.hub import resolve

    try:
        return resolve("smollm2")
    except HubError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the default model cannot be fetched: {error}")


@pytest.fixture(scope="session")
def prose() -> str:
    """About 1,850 words of ordinary English."""
    return (Path(__file__).parent / "data" / "prose.txt").read_text(encoding="utf-8")
