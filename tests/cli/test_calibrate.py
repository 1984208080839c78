"""`edgerun calibrate`, and what runs with what it found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from .conftest import Run


@pytest.fixture(scope="module")
def made(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shutil.copytree(package, tmp_path_factory.mktemp("calibrate") / "package")


@pytest.fixture(scope="module")
def text(prose: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "prose.txt"
    path.write_text(prose, encoding="utf-8")
    return path


def test_calibrate_then_run(edgerun: Run, made: Path, text: Path) -> None:
    asked = ("calibrate", made, "--text", text, "--budget-kl", 0.05, "--context", 384, "--policy", "deltallm")
    result = edgerun(*asked, "--json")
    assert result.returncode == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    assert report["budget_kl"] == 0.05
    (best, *_) = report["settings"]
    assert set(best) == {"policy", "context", "kl", "perplexity", "exact_perplexity", "sparsity", "read_share"}
    again = edgerun(*asked)
    assert again.returncode == 0
    assert again.stdout.splitlines()[1].split()[:3] == ["deltallm", "384", f"{best['kl']:.5f}"]
    assert f"calibrated  deltallm: 384 tokens, mean KL {best['kl']:.5f}" in edgerun("info", made).stdout
    for attention in (("--quality", "1"), ("--attention", "deltallm:kl=1")):
        answer = edgerun("run", made, "hello", "-n", 2, "--temperature", 0, *attention)
        assert answer.returncode == 0, answer.stderr


def test_calibrate_activations(edgerun: Run, made: Path, text: Path) -> None:
    """Beside what the package has of attention."""
    before = [line for line in edgerun("info", made).stdout.splitlines() if line.startswith("calibrated")]
    result = edgerun("calibrate", made, "--text", text, "--budget-kl", 1, "--policy", "activations", "--json")
    assert result.returncode == 0 and result.stderr == ""
    report = json.loads(result.stdout)
    assert report["settings"] == []
    assert [line for line in edgerun("info", made).stdout.splitlines() if line.startswith("calibrated")] == before
    for point in report["activations"]:
        assert 0 <= point["kl"] <= 1
        answer = edgerun("run", made, "hello", "-n", 2, "--sparsity", f"calibrated:kl={point['kl'] + 1e-6}")
        assert answer.returncode == 0, answer.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "{package}", "hello", "--quality", "0.1", "--attention", "full"), "give one of them"),
        (("run", "{package}", "hello", "--quality", "x"), "'x' is not a valid float"),
        (("run", "{package}", "hello", "--quality", "0.1"), "run `edgerun calibrate` first"),
        (("eval", "{package}", "--text", "{text}", "--quality", "0.1"), "run `edgerun calibrate` first"),
        (("bench", "{package}", "--quality", "0.1"), "run `edgerun calibrate` first"),
        (("calibrate", "{package}", "--text", "{text}", "--budget-kl", "0"), "the budget is 0.0 nats"),
        (("calibrate", "{package}", "--text", "no.txt"), "no.txt does not exist"),
        (("calibrate", "{package}", "--text", "{text}", "--context", "4000"), "the context is 4000"),
    ],
)
def test_one_line_of_error(edgerun: Run, package: Path, text: Path, arguments: tuple[str, ...], message: str) -> None:
    result = edgerun(*(part.format(package=package, text=text) for part in arguments))
    assert result.returncode != 0 and result.stdout == ""
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_damaged_calibration(edgerun: Run, made: Path, text: Path) -> None:
    path = made / "edgerun.json"
    before = path.read_bytes()
    path.write_text(json.dumps(json.loads(before) | {"calibration": {"weights": "x"}}))
    for arguments in (("run", made, "hello"), ("calibrate", made, "--text", text)):
        result = edgerun(*arguments)
        assert result.returncode != 0 and "made for another model" in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    path.write_bytes(before)
