"""An emulated ARM machine (`.ci/arm.sh`), on which this checkout runs with the kernels that were made here for it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgerun_kernels.build import objects
from edgerun_kernels.machine import architecture
from edgerun_kernels.targets import TARGETS
from tests.cli.conftest import ROOT, environment

Emulated = Callable[..., "subprocess.CompletedProcess[str]"]
CACHE = ROOT / ".arm" / "cache"


@pytest.fixture(scope="session")
def arm() -> Emulated:
    """Runs Python's arguments on an emulated processor: ``arm(cpu, *arguments, **variables)``. Skips where there can be
    no emulator, and on ARM itself, where all tests are run on the processor."""
    if architecture() == "aarch64":
        pytest.skip("this machine is an ARM machine; nothing to emulate")
    made = subprocess.run(["sh", str(ROOT / ".ci" / "arm.sh")], capture_output=True, text=True)
    if made.returncode != 0:
        pytest.skip(made.stderr.strip().splitlines()[-1])
    _make_kernels(CACHE / "kernels" / objects.source_hash())

    def run(cpu: str, *arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(ROOT / ".arm" / "python"), *map(str, arguments)]
        env = {**environment(), "QEMU_CPU": cpu, "EDGERUN_CACHE": str(CACHE), **variables}
        return subprocess.run(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True)

    return run


def _make_kernels(folder: Path) -> None:
    """ARM objects from the bitcode, two at a time."""
    targets = [target.name for target in TARGETS if target.architecture == "aarch64"]
    missing = [name for name in targets if not objects.is_current(folder / objects.file_name(name))]

    def emit(isa: str) -> None:
        command = [sys.executable, "-m", "edgerun_kernels.build.emit", "--isa", isa, "--out", str(folder)]
        subprocess.run(command, env=environment(), check=True, cwd=ROOT)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(emit, missing))


def reduced() -> dict[str, str]:
    """A twentieth of the examples, on the best instruction set of each; $EDGERUN_EXAMPLES chooses otherwise."""
    share = os.environ.get("EDGERUN_EXAMPLES")
    return {} if share else {"EDGERUN_EXAMPLES": "0.05", "EDGERUN_TESTED_ISAS": "best"}
