"""A tiny package, and the command line as a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from edgerun_exporters import export
from tests.hub.checkpoints_made import safetensors_folder

Run = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package with random weights, a chat template and a context of 512 tokens."""
    folder = tmp_path_factory.mktemp("tiny")
    export(checkpoint(folder / "checkpoint"), folder / "package")
    return folder / "package"


def checkpoint(folder: Path, seed: int = 0) -> Path:
    """A folder of safetensors with random weights."""
    folder.mkdir()
    safetensors_folder(folder, seed)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 512}))
    return folder


def environment() -> dict[str, str]:
    """The variables of a process that finds this checkout."""
    paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "exporters"), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in paths if path)}


@pytest.fixture
def edgerun() -> Run:
    """Runs `python -m edgerun …` without a terminal."""

    def run(
        *arguments: str | Path,
        input: str | bytes = "",
        timeout: float = 120,
        env: dict[str, str] | None = None,
        python: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        result = subprocess.run(
            [sys.executable, *python, "-m", "edgerun", *map(str, arguments)],
            input=input.encode() if isinstance(input, str) else input,
            capture_output=True,
            timeout=timeout,
            env=environment() | (env or {}),
        )
        return subprocess.CompletedProcess(
            result.args, result.returncode, result.stdout.decode(), result.stderr.decode()
        )

    return run
