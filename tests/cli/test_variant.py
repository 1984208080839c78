"""`edgerun variant`, and --variant on the commands that run a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgerun import Model
from edgerun.cli.main import main
from tests.conftest import checkpoint
from tests.variants.made import write

from .conftest import Run

FIXED = ("--temperature", "0", "-n", "8")


@pytest.fixture
def library(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library with the variants a and b of the package."""
    monkeypatch.setenv("EDGERUN_CACHE", str(tmp_path))
    for seed, name in enumerate("ab"):
        write(package, tmp_path / "variants" / f"{name}.safetensors", seed=seed, quality={"score": 0.75})
    return tmp_path / "variants"


def test_list(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (library / "broken.safetensors").write_bytes(b"x" * 100)
    assert main(["variant", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[:2]] == [["a", "made"], ["b", "made"]]
    assert "broken.safetensors: not a variant" in lines[2]
    assert main(["variant", "list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in found["variants"]] == ["a", "b", "broken"]


def test_info(library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variant", "info", "a", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "made" and found["quality"] == {"score": 0.75} and found["value_bits"] == [4]
    assert 0.05 < found["density"] < 0.15 and found["bytes"] == (library / "a.safetensors").stat().st_size
    assert main(["variant", "info", str(library / "a.safetensors")]) == 0
    assert "score 0.75" in capsys.readouterr().out


def test_verify(library: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["variant", "verify", "a", str(package)]) == 0
    assert "sound, a variant of" in capsys.readouterr().out
    path = library / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert main(["variant", "verify", "a"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("edgerun: error: ") and "a.safetensors" in err and err.count("\n") == 1


def test_merge_into_a_variant(library: Path, package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for method in ("task-arithmetic", "ties"):
        assert main(["variant", "merge", "a:0.5+b:0.5", "both", "--method", method]) == 0
        assert main(["variant", "verify", "both", str(package)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{library / 'both.safetensors'}: ")
    assert main(["variant", "merge", "a+c", "other"]) == 1
    assert "c: no such variant; there are a, b, both in" in capsys.readouterr().err


def test_merge_into_a_package(library: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, source = tmp_path / "merged", checkpoint(tmp_path / "checkpoint")
    assert main(["variant", "merge", "a", str(out), "--base", str(source), "--quant", "f32"]) == 0
    with Model(package, variant="a", compute="float32") as model, Model(out, compute="float32") as merged:
        wanted, got = (each.session().prefill([1, 2, 3]).copy() for each in (model, merged))
    assert abs(got - wanted).max() <= 0.05 * abs(wanted).max()  # the package's own weights are 8 bits
    assert main(["variant", "merge", "a", str(out), "--base", str(checkpoint(tmp_path / "other", seed=1))]) == 1
    assert "not those that" in capsys.readouterr().err


def test_run_and_chat_with_variants(library: Path, package: Path, edgerun: Run) -> None:
    env = {"EDGERUN_CACHE": str(library.parent)}
    texts = {}
    for spec in ("none", "b"):
        result = edgerun("run", package, "Hello", *FIXED, "--variant", spec, env=env)
        assert (result.returncode, result.stderr) == (0, "")
        texts[spec] = result.stdout
    assert texts["none"] != texts["b"]
    assert edgerun("run", package, "Hello", *FIXED, env=env).stdout == texts["none"]
    lines = "Hello\n/reset\n/variant b\nHello\n/reset\n/variant none keep\n/variant\nHello\n/variant c\n"
    result = edgerun("chat", package, *FIXED, input=lines, env=env)
    assert result.stdout == texts["none"] + texts["b"] + texts["none"]
    errors = result.stderr.splitlines()
    assert errors[1].startswith("The variant is b, after ") and errors[1].endswith("the cache is empty.")
    assert "The variant: none. There are a, b." in errors
    assert errors[-1].startswith("edgerun: error: c: no such variant")


def test_bench_and_eval_with_a_variant(
    library: Path, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "prose.txt").write_text("It was a bright cold day in April. " * 12)
    plan = ["--prompt", "8", "--gen", "4", "--repeat", "1", "--profile", "--json"]
    assert main(["bench", str(package), *plan, "--variant", "a"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["variant"] == "a"
    kinds = {kind["kind"] for kind in found["results"][0]["profile"]}
    assert "mlp.down_proj" in kinds and "sparse delta" not in kinds  # what a variant adds counts with its layers
    perplexities = []
    for spec in ("none", "a"):
        arguments = ["--text", str(tmp_path / "prose.txt"), "--context", "64", "--json", "--variant", spec]
        assert main(["eval", str(package), *arguments, "--against", "exact"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["kl_mean"] < 0.05
        perplexities.append(found["perplexity"])
    assert perplexities[0] != perplexities[1]
