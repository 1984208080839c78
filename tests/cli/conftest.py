"""The command line as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

Run = Callable[..., "subprocess.CompletedProcess[str]"]
ROOT = Path(__file__).parents[2]


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
