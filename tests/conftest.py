"""What all tests share: a tiny package, the real model (fetched once into the user's own cache), and prose."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.sources.checkpoints_made import safetensors_folder


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The package folder of the default model. Skips without a network, but never in continuous integration."""
    from edgerun.errors import HubError
    from edgerun.sources.hub import resolve

    try:
        return resolve("smollm2")
    except HubError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"the default model cannot be fetched: {error}")


@pytest.fixture(scope="session")
def qwen_coder() -> Path:
    """Qwen2.5-Coder-0.5B-Instruct as a Q4_K_M GGUF file of 491 MB. Skips as `smollm2` does."""
    from edgerun.errors import HubError
    from tests.real_models import QWEN_CODER, fetch

    try:
        return fetch(QWEN_CODER)
    except HubError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{QWEN_CODER.file_name} cannot be fetched: {error}")


@pytest.fixture(scope="session")
def prose() -> str:
    """About 1,850 words of ordinary English."""
    return (Path(__file__).parent / "data" / "prose.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with random weights, a chat template and a context of 512 tokens."""
    from edgerun_exporters import export

    folder = tmp_path_factory.mktemp("tiny")
    export(checkpoint(folder / "checkpoint"), folder / "package")
    return folder / "package"


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with random weights in two layers, so that one can attend to what the other chooses; context 512."""
    from edgerun_exporters import export
    from tests.exporters.made import random_model, save

    folder = tmp_path_factory.mktemp("two")
    save(random_model(max_position_embeddings=512, vocab_size=300), folder / "checkpoint")
    export(folder / "checkpoint", folder / "package")
    return folder / "package"


def checkpoint(folder: Path, seed: int = 0) -> Path:
    """A folder of safetensors with random weights."""
    folder.mkdir()
    safetensors_folder(folder, seed)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return folder
