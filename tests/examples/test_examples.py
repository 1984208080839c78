"""Each example runs, as a program, on a model with random weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgerun.package.reader import open_package
from tests.cli.conftest import ROOT, environment

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: object, input: str = "") -> str:
    result = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *map(str, arguments)],
        input=input,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=120,
        env=environment() | {"PYTHONIOENCODING": "utf-8"},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    return result.stdout


def test_streaming_answer(package: Path) -> None:
    last = run("streaming_answer.py", package, "Hello?").splitlines()[-1]
    assert last.startswith(("stop, ", "length, ")) and last.endswith(" tokens/s")


def test_chat_loop(package: Path) -> None:
    out = run("chat_loop.py", package, input="a\n")
    assert "[0 of " in out and "prompt tokens were in the cache]" in out


def test_sessions_on_threads(package: Path) -> None:
    out = run("sessions_on_threads.py", package)
    places = [out.index(question) for question in ("colour", "river", "flies", "two plus two")]
    assert places == sorted(places)
    assert out == run("sessions_on_threads.py", package)


@pytest.mark.parametrize("name", ["classify_logprobs.py"])
def test_classify_logprobs(name: str, package: Path) -> None:
    lines = run(name, package).splitlines()
    assert len(lines) == 4
    assert all(line.startswith(("positive (", "negative (")) for line in lines)


def test_train_bitnet(tmp_path: Path) -> None:
    """Two steps of training; both checkpoints are of one model, and edgerun runs it."""
    from edgerun_exporters import export
    from tests.exporters.test_bitnet import ternary_tensors

    out = run("train_bitnet.py", "--out", tmp_path, "--minutes", 0.02)
    assert "4.4 million ternary weights" in out and "of the unigram entropy" in out
    packages = []
    for form in ("packed", "master"):
        export(tmp_path / form, tmp_path / f"{form}.pkg")
        packages.append(ternary_tensors(open_package(tmp_path / f"{form}.pkg")))
    assert packages[0] == packages[1]


def test_no_example_is_forgotten() -> None:
    text = Path(__file__).read_text("utf-8")
    assert EXAMPLES and all(f'"{path.name}"' in text for path in EXAMPLES)
