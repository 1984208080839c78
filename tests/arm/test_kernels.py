"""Every operation of the vocabulary and every kernel on emulated ARM processors: what is in `tests/kernels`, there."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from .conftest import Emulated, reduced

PROCESSORS = {
    "cortex-a53": "neon",  # Pi 3
    "cortex-a72": "neon",  # Pi 4
    "cortex-a76": "neon_dotprod",  # Pi 5
    "neoverse-v1": "neon_i8mm",  # Graviton 3
    "max": "neon_i8mm",
}
"""As the emulator calls them, and the best instruction set of ours that each reports."""

Runs = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def runs(arm: Emulated) -> Iterator[Runs]:
    """The tests, on two processors at a time. What is emitted, this machine has tested already."""
    options = ("-q", "-p", "no:cacheprovider", "--ignore", "tests/kernels/test_object_code.py", "tests/kernels")
    pool = ThreadPoolExecutor(2)
    yield {cpu: pool.submit(arm, cpu, "-m", "pytest", *options, CI="1", **reduced()) for cpu in PROCESSORS}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("cpu", PROCESSORS)
def test_the_best_kernels_are_chosen(arm: Emulated, cpu: str) -> None:
    result = arm(cpu, "-c", "from edgerun_kernels.build.load import kernels; print(kernels().isa)")
    assert (result.stdout.strip(), result.stderr) == (PROCESSORS[cpu], "")


@pytest.mark.parametrize("cpu", PROCESSORS)
def test_operations_and_kernels(runs: Runs, cpu: str) -> None:
    result = runs[cpu].result()
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    passed = re.search(r"(\d+) passed", result.stdout)
    assert passed and int(passed[1]) >= 150, result.stdout[-500:]
