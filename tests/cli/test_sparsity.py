"""--sparsity on the commands that run a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgerun.cli.main import main

PLAN = ["--prompt", "4", "--gen", "6", "--repeat", "1", "--threads", "1"]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path / "cache"))


def test_run_and_bench_say_what_was_skipped(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(package), "Hello", "-n", "4", "--temperature", "0", "--json"]
    assert main(["run", *arguments, "--sparsity", "threshold:keep=0.1"]) == 0
    assert json.loads(capsys.readouterr().out)["sparsity"] == "threshold:keep=0.1"
    assert main(["bench", str(package), *PLAN, "--profile", "--json", "--sparsity", "threshold:keep=0.1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sparsity"] == "threshold:keep=0.1"
    kinds = {kind["kind"]: kind for kind in found["results"][0]["profile"]}
    for kind in ("qkv", "attention_output", "gate_up", "down"):
        assert kinds[kind]["columns_skipped"] == pytest.approx(0.9, abs=0.1)
        assert kinds[kind]["bytes_read"] > 0
    assert main(["bench", str(package), *PLAN, "--profile", "--sparsity", "delta:at=0.5"]) == 0
    assert "joining" in capsys.readouterr().out


def test_eval_decodes_and_counts_bytes(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text").write_text("Once upon a time there was a fox that lived in a wood. " * 8)
    arguments = ["eval", str(package), "--text", str(tmp_path / "text"), "--context", "64", "--json"]
    found = []
    for spec in ("none", "zero", "threshold:keep=0.15"):
        assert main([*arguments, "--against", str(package), "--sparsity", spec]) == 0
        found.append(json.loads(capsys.readouterr().out))
    dense, zero, sparse = found
    assert dense["weight_bytes_skipped"] is None
    assert zero["kl_mean"] == pytest.approx(dense["kl_mean"], abs=1e-6)
    assert sparse["kl_mean"] > dense["kl_mean"]
    assert 0.1 < sparse["weight_bytes_skipped"] < 0.7
    assert [report["tokens"] for report in found] == [dense["tokens"]] * 3


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--sparsity", "teal"], "there is no policy 'teal'"),
        (["--sparsity", "threshold:keep=3"], "no share"),
        (["--sparsity", "calibrated:kl=0.1"], "has no calibration of activations"),
        (["--sparsity", "zero", "--compute", "float32"], "--compute float32"),
    ],
)
def test_what_is_wrong_is_one_line(
    package: Path, options: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(package), "Hello", "-n", "1", *options]) != 0
    error = capsys.readouterr().err
    assert why in error
    assert error.count("\n") == 1
