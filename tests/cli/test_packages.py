"""`export`, `pull`, `info`, `eval` and `bench` on a package with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgerun.cli.main import main
from tests.conftest import checkpoint

PROSE = "It was a bright cold day in April, and the clocks were striking thirteen. " * 12


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert main([*map(str, arguments), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == "" and out.count("\n") == 1
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


def test_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    found = report(capsys, "export", checkpoint(tmp_path / "in"), out, "--quant", "q4")
    assert found["path"] == str(out) and found["tensors"] > 0 and found["bytes"] > 0
    assert (out / "edgerun.json").is_file()
    assert main(["export", str(tmp_path / "in"), str(out)]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{out}: ") and "note: " in text


def test_export_of_what_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF\x03\0\0\0")
    assert main(["export", str(tmp_path / "a.gguf"), str(tmp_path / "out")]) == 1
    err = capsys.readouterr().err
    assert err.startswith("edgerun: error: ") and "a.gguf" in err and err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_pull(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pull", str(package)]) == 0
    assert capsys.readouterr().out == f"{package}\n"
    assert report(capsys, "pull", package)["bytes"] > 0


def test_info(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, "info", package, "--tensors")
    assert found["family"] == "llama" and found["hidden_size"] == 32 and found["tied_embeddings"] is True
    assert {kind["part"] for kind in found["kinds"]} >= {"embedding", "attention", "mlp", "norm"}
    assert sum(kind["bytes"] for kind in found["kinds"]) == sum(tensor["bytes"] for tensor in found["tensors"])
    assert sum(kind["weights"] for kind in found["kinds"]) == found["weights"]
    shapes = {tensor["name"]: tensor["shape"] for tensor in found["tensors"]}
    assert shapes["layers.0.mlp.gate_proj.weight"] == [64, 32]
    assert main(["info", str(package), "--tensors"]) == 0
    text = capsys.readouterr().out
    assert "sha256" in text and "layers.0.mlp.gate_proj.weight" in text and "64×32" in text


@pytest.mark.parametrize("against", ["exact", "onnxruntime", "itself"])
def test_eval(against: str, package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "prose.txt"
    text.write_text(PROSE)
    other = package if against == "itself" else against
    found = report(capsys, "eval", package, "--text", text, "--context", "64", "--against", other)
    assert found["tokens"] % 31 == 0 and found["tokens"] > 0
    assert 1 < found["perplexity"] < 10_000
    assert 0 <= found["kl_mean"] < 0.01 and found["top1_agreement"] > 0.8
    alone = report(capsys, "eval", package, "--text", text, "--context", "64")
    assert alone["perplexity"] == found["perplexity"] and alone["kl_mean"] is None


def test_eval_in_float32_is_onnxruntime(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "prose.txt"
    text.write_text(PROSE)
    exact = ("--compute", "float32", "--cache-type", "f32")
    found = report(capsys, "eval", package, "--text", text, "--context", "64", "--against", "onnxruntime", *exact)
    assert found["kl_mean"] < 1e-8 and found["top1_agreement"] > 0.99
    assert main(["eval", str(package), "--text", str(text), "--context", "64", "--against", "exact"]) == 0
    out = capsys.readouterr().out
    assert "perplexity" in out and "top-1 agreement" in out


def test_eval_against_another_tokenizer(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = checkpoint(tmp_path / "in")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = []
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert main(["export", str(other), str(tmp_path / "other")]) == 0
    (tmp_path / "a.txt").write_text(PROSE)
    capsys.readouterr()
    assert main(["eval", str(package), "--text", str(tmp_path / "a.txt"), "--against", str(tmp_path / "other")]) == 1
    assert "split the text into different tokens" in capsys.readouterr().err


def test_eval_of_a_text_that_is_too_short(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.txt").write_text("a")
    assert main(["eval", str(package), "--text", str(tmp_path / "a.txt")]) == 1
    assert "give a longer text" in capsys.readouterr().err


def test_bench(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--prompt", "16", "--gen", "4", "--depth", "0,32", "--threads", "1,2", "--repeat", "2")
    found = report(capsys, "bench", package, *small)
    assert found["memory_read_gb_per_s"] > 0
    assert [(result["threads"], result["depth"]) for result in found["results"]] == [(1, 0), (1, 32), (2, 0), (2, 32)]
    for result in found["results"]:
        for name in ("prefill_tokens_per_s", "decode_tokens_per_s", "first_token_s", "memory_read_gb_per_s"):
            assert result[name] > 0
        assert result["peak_rss_bytes"] > 10_000_000
    assert main(["bench", str(package), *small]) == 0
    assert "tokens/s" in capsys.readouterr().out


def test_bench_shows_where_the_time_goes(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--prompt", "8", "--gen", "4", "--repeat", "1", "--threads", "1", "--profile")
    found = report(capsys, "bench", package, *small)
    kinds = {line["kind"]: line for line in found["results"][0]["profile"]}
    assert {"attention", "norms", "output", "mlp.down_proj", "all"} <= kinds.keys()
    assert sum(line["share"] for kind, line in kinds.items() if kind != "all") == pytest.approx(1)
    assert kinds["all"]["bytes_read"] == sum(line["bytes_read"] for kind, line in kinds.items() if kind != "all")
    assert main(["bench", str(package), *small]) == 0
    assert "of memory's" in capsys.readouterr().out


def test_bench_writes_a_report(package: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ("--prompt", "8", "--gen", "4", "--repeat", "1", "--threads", "1,2")
    path = tmp_path / "report.md"
    assert main(["bench", str(package), *small, "--report", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    assert "# edgerun bench: " in text and "prefill 8, decode 4, medians of 1" in text
    assert "- processor: " in text and ", kernels " in text
    rows = [line for line in text.splitlines() if line.startswith(("| 1 | 0 |", "| 2 | 0 |"))]
    assert len(rows) == 2
    capsys.readouterr()
    nowhere = tmp_path / "missing" / "report.md"
    assert main(["bench", str(package), *small, "--report", str(nowhere)]) == 1
    assert capsys.readouterr() == (
        "",
        f"edgerun: error: the report cannot be written to {nowhere}: No such file or directory\n",
    )


def test_bench_beyond_the_context(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(package), "--depth", "9999"]) == 1
    error = capsys.readouterr().err
    assert "depth 9999 and prompt or gen 512 want 10511 tokens, but the context has 512; measure less" in error
