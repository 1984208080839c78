"""The main job, with the real model, as a user has it: fetched once, then answered from the cache."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import environment


def edgerun(*arguments: str, python: tuple[str, ...] = (), input: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *python, "-m", "edgerun", *arguments],
        input=input,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
        env=environment(),
    )


@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_capital_of_france(smollm2: Path, threads: str) -> None:
    result = edgerun("run", "smollm2", "--temperature", "0", "--threads", threads, "What is the capital of France?")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Paris" in result.stdout


def test_a_piped_chat(smollm2: Path) -> None:
    result = edgerun("chat", "--temperature", "0", input="What is the capital of France?\nAnd of Italy?\n")
    assert (result.returncode, result.stderr) == (0, "")
    assert "Paris" in result.stdout and "Rome" in result.stdout


def test_a_warm_start_imports_no_compiler(smollm2: Path) -> None:
    edgerun("run", "smollm2", "-n", "1", "Hello")
    result = edgerun("run", "smollm2", "-n", "1", "Hello", python=("-X", "importtime"))
    assert result.returncode == 0
    imported = {line.rsplit("|", 1)[-1].strip().partition(".")[0] for line in result.stderr.splitlines()}
    assert "edgerun" in imported
    heavy = {"numba", "onnxruntime", "huggingface_hub", "gguf", "safetensors", "rich", "prompt_toolkit", "torch"}
    assert not imported & heavy
