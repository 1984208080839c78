"""The default model on emulated ARM processors: the same text as here, from the same files, by the command line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cli.conftest import environment

from .conftest import CACHE, Emulated

PROMPT = "Name three rivers in Europe."
COMMAND = ("--temperature", "0", "-n", "24", "--threads", "1", PROMPT)
PROCESSORS = ("cortex-a53", "cortex-a76", "neoverse-v1")

Runs = dict[str, "Future[subprocess.CompletedProcess[str]]"]


def state(package: Path) -> list[tuple[str, int, int]]:
    stats = [(path.name, path.stat()) for path in sorted(package.iterdir())]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


@pytest.fixture(scope="module")
def package_state(smollm2: Path) -> list[tuple[str, int, int]]:
    return state(smollm2)


@pytest.fixture(scope="module")
def runs(arm: Emulated, smollm2: Path, package_state: object) -> Iterator[Runs]:
    pool = ThreadPoolExecutor(2)
    command = ("-X", "importtime", "-m", "edgerun", "run", smollm2, *COMMAND)
    yield {cpu: pool.submit(arm, cpu, *command) for cpu in PROCESSORS}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("cpu", PROCESSORS)
def test_greedy_text_is_the_same(runs: Runs, smollm2: Path, package_state: object, cpu: str) -> None:
    """From the package that was made here, which stays as it is; without a compiler or another runtime."""
    here = [sys.executable, "-m", "edgerun", "run", str(smollm2), *COMMAND]
    wanted = subprocess.run(here, env=environment(), capture_output=True, text=True, check=True).stdout
    result = runs[cpu].result()
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout == wanted
    imported = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "edgerun" in imported
    assert not imported & {"numba", "onnxruntime", "huggingface_hub", "gguf", "torch"}
    assert state(smollm2) == package_state
    assert [path.name for path in CACHE.iterdir()] == ["kernels"]
