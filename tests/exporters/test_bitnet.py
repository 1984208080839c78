"""BitNet checkpoints in every published form: the same package, and one clear error for what is not ternary."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from edgerun.errors import CheckpointError
from edgerun.package import layout
from edgerun.program.open import Package, open_package
from edgerun_exporters import export

from .bitnet_made import (
    FOLDERS,
    GGUFS,
    ODD_SIZES,
    SCALE,
    Bitnet,
    random_bitnet,
    trits,
    write,
    write_folder,
    write_gguf,
)  # fmt: skip


@pytest.fixture(scope="module")
def model() -> Bitnet:
    return random_bitnet()


def exported(model: Bitnet, form: str, folder: Path) -> Package:
    export(write(model, form, folder / "source"), folder / "pkg")
    return open_package(folder / "pkg")


def ternary_tensors(package: Package) -> dict[str, bytes]:
    nodes = [node for node in package.graph.node if node.op_type in ("BitLinear", "SparseBitLinear")]
    return {name: package.tensor(name).tobytes() for node in nodes for name in node.input[1:]}


@pytest.mark.parametrize("form", [form for form in (*FOLDERS, *GGUFS) if form != "packed"])
def test_every_form_gives_the_same_ternary_bytes(form: str, model: Bitnet, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    wanted = ternary_tensors(exported(model, "packed", tmp_path / "packed"))
    assert len(wanted) == 2 * 7 * model.config.num_hidden_layers
    assert ternary_tensors(exported(model, form, tmp_path)) == wanted


def test_the_bytes_are_the_models(model: Bitnet, tmp_path: Path) -> None:
    package = exported(model, "packed", tmp_path)
    for name in model.linear():
        ours = name.removeprefix("model.").replace("self_attn", "attention") + ".weight"
        values, scale = trits(model.state[f"{name}.weight"])
        n, k = values.shape
        fmt = "ternary_columns" if ours.endswith("down_proj.weight") else "ternary"
        stored = layout.unpack(fmt, {part: package.tensor(f"{ours}.{part}") for part in ("q", "d")}, n, k)
        np.testing.assert_array_equal(stored.values - 1.0, values.numpy())
        assert stored.d is not None and float(stored.d[0]) == float(scale) == SCALE


def test_compact_layers_hold_the_same_weights(model: Bitnet, tmp_path: Path) -> None:
    """In 1.67 bits: all but what lies by columns."""
    source = write(model, "packed", tmp_path / "source")
    export(source, tmp_path / "pkg")
    export(source, tmp_path / "compact", compact=True)
    plain, compact = (open_package(tmp_path / name) for name in ("pkg", "compact"))
    changed = 0
    for ours, theirs in zip(plain.graph.node, compact.graph.node, strict=True):
        if theirs.op_type == "TripleBitLinear":
            n, k = (next(a.i for a in theirs.attribute if a.name == name) for name in "NK")
            stored = [{s: package.tensor(f"{theirs.input[1][:-2]}.{s}") for s in "qd"} for package in (plain, compact)]
            formats = ("ternary", "ternary_triples")
            two_bits, three = (layout.unpack(*given, n, k) for given in zip(formats, stored, strict=True))
            np.testing.assert_array_equal(two_bits.values, three.values)
            assert two_bits.d == three.d
            changed += 1
        else:
            assert ours.op_type == theirs.op_type
    assert changed == 6 * model.config.num_hidden_layers


def test_what_a_package_says(model: Bitnet, tmp_path: Path) -> None:
    config = exported(model, "packed", tmp_path).config
    assert (config.family, config.rope_theta, config.tied_embeddings) == ("bitnet", 500_000.0, True)
    assert config.quantisation["linear"] == "ternary" and config.quantisation["embedding"] == "q6_k"


@pytest.mark.parametrize(
    ("quant", "fmt"), [("auto", "EmbedQ6K"), ("q4", "EmbedQ6K"), ("q8", "EmbedQ8"), ("f32", "EmbedF32")]
)
def test_quant_decides_the_embedding_only(quant: str, fmt: str, model: Bitnet, tmp_path: Path) -> None:
    export(write(model, "packed", tmp_path / "source"), tmp_path / "pkg", quant=quant)
    used = {node.op_type for node in open_package(tmp_path / "pkg").graph.node}
    assert {fmt, "BitLinear", "SparseBitLinear"} <= used


def test_the_first_generation_has_silu_and_its_own_names(tmp_path: Path) -> None:
    """GGUF's architecture "bitnet", and 1bitLLM's folders: a Llama with weight_bits 1 and two more norms."""
    model = random_bitnet(hidden_act="silu")
    export(write_gguf(model, "TQ2_0", tmp_path / "m.gguf", "bitnet"), tmp_path / "gguf")
    folder = write_folder(model, "master", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]
    config |= {"model_type": "llama", "weight_bits": 1, "input_bits": 8}
    (folder / "config.json").write_text(json.dumps(config))
    names = {"attn_sub_norm": "inner_attn_ln", "ffn_sub_norm": "ffn_layernorm"}
    state = load_file(folder / "model.safetensors")
    for old, new in names.items():
        state = {name.replace(old, new): values for name, values in state.items()}
    save_file(state, folder / "model.safetensors")
    export(folder, tmp_path / "hf.pkg")
    one, two = (open_package(tmp_path / name) for name in ("gguf", "hf.pkg"))
    assert ternary_tensors(one) == ternary_tensors(two)
    for package in (one, two):
        used = {node.op_type for node in package.graph.node}
        assert "SwiGLU" in used and "SparseBitLinear" not in used, "few inputs of down_proj are zero behind SiLU"
        assert "layers.0.mlp.down_proj.norm.weight" in {tensor.name for tensor in package.graph.initializer}


def test_a_llama_with_ternary_layers(tmp_path: Path) -> None:
    """Falcon-E and the HF1BitLLM conversions: a plain Llama, of which some layers may have been left as they were."""
    model = random_bitnet(hidden_act="silu")
    state = {name: values for name, values in model.state.items() if "sub_norm" not in name}
    folder = write_folder(Bitnet(model.config, state), "packed for BitLinear", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "llama"
    config["quantization_config"]["modules_to_not_convert"] = ["lm_head", "model.layers.1.mlp.down_proj"]
    (folder / "config.json").write_text(json.dumps(config))
    stored = load_file(folder / "model.safetensors")
    kept = "model.layers.1.mlp.down_proj.weight"
    stored[kept] = model.state[kept]
    del stored[kept + "_scale"]
    save_file(stored, folder / "model.safetensors")
    export(folder, tmp_path / "pkg")
    nodes = {node.name: node.op_type for node in open_package(tmp_path / "pkg").graph.node}
    assert nodes["layers.0.mlp.down_proj"] == "BitLinear" and nodes["layers.1.mlp.down_proj"] != "BitLinear"
    assert nodes["layers.1.mlp.up_proj"] == "BitLinear"


def test_a_norm_inside_every_linear_layer(tmp_path: Path) -> None:
    """transformers' use_rms_norm."""
    model = random_bitnet(hidden_act="silu")
    state = {name: values for name, values in model.state.items() if "sub_norm" not in name}
    for name in model.linear():
        state[f"{name}.rms_norm.weight"] = torch.ones(state[f"{name}.weight"].shape[1], dtype=torch.bfloat16)
    folder = write_folder(Bitnet(model.config, state), "packed", tmp_path / "hf")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "llama"}
    config["quantization_config"] |= {"use_rms_norm": True, "rms_norm_eps": config["rms_norm_eps"]}
    (folder / "config.json").write_text(json.dumps(config))
    export(folder, tmp_path / "pkg")
    nodes = {node.name for node in open_package(tmp_path / "pkg").graph.node}
    assert "layers.0.attention.q_proj.norm" in nodes and "layers.1.mlp.down_proj.norm" in nodes
    config["quantization_config"]["rms_norm_eps"] = 0.1
    (folder / "config.json").write_text(json.dumps(config))
    assert "rms_norm_eps differs" in message(folder, tmp_path)


def test_plain_llama_squeezed_into_a_ternary_format(tmp_path: Path) -> None:
    """Its blocks have scales of their own, so it is no ternary model, and is requantised as other small formats are."""
    from .made import random_model
    from .made import write_gguf as write_llama

    llama = random_model(hidden_size=256, intermediate_size=512)
    write_llama(llama, tmp_path / "m.gguf", {"": "TQ2_0"})
    report = export(tmp_path / "m.gguf", tmp_path / "pkg")
    assert "BitLinear" not in {node.op_type for node in open_package(tmp_path / "pkg").graph.node}
    assert any("TQ2_0 to q4_1" in note for note in report.notes)


# --- what is wrong is said --------------------------------------------------------------------------------------------


def message(source: Path, folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        export(source, folder / "bad.pkg")
    text = str(caught.value)
    assert "\n" not in text and source.name in text and not list(folder.glob("bad.pkg*"))
    return text


LAYER = "model.layers.1.mlp.up_proj"
SUB_NORM = "model.layers.0.mlp.ffn_sub_norm.weight"


def _set(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(state: dict[str, torch.Tensor]) -> None:
        state[name] = change(state[name].clone())

    return edit


def _poke(value: float, row: int = 7, column: int = 5) -> Callable[[torch.Tensor], torch.Tensor]:
    def change(tensor: torch.Tensor) -> torch.Tensor:
        tensor[row, column] = value
        return tensor

    return change


BAD: list[tuple[str, str, Callable[[dict[str, torch.Tensor]], None], str]] = [
    ("packed", "a code of 3", _set(f"{LAYER}.weight", _poke(0b11000000)), "is not ternary: at row 391, column 5"),
    ("packed", "scale 0", _set(f"{LAYER}.weight_scale", lambda t: t * 0), "scale of its ternary weights is 0"),
    ("packed", "scale negative", _set(f"{LAYER}.weight_scale", lambda t: -t), "its ternary weights is -0.0625"),
    ("packed", "scale inf", _set(f"{LAYER}.weight_scale", lambda t: t / 0), "scale of its ternary weights is inf"),
    ("packed", "scale NaN", _set(f"{LAYER}.weight_scale", lambda t: t * np.nan), "scale of its ternary weights is nan"),
    ("packed", "no scale", lambda state: state.pop(f"{LAYER}.weight_scale") and None, "weight_scale is missing"),
    ("packed", "two scales", _set(f"{LAYER}.weight_scale", lambda t: t.repeat(2)), "has shape [2], expected one scale"),
    ("packed", "too few rows", _set(f"{LAYER}.weight", lambda t: t[1:]), "has shape [127, 256], but the configuration"),
    ("packed", "too wide", _set(f"{LAYER}.weight", lambda t: t.repeat(1, 2)), "has shape [128, 512], but the"),
    ("packed for BitLinear", "scale 0", _set(f"{LAYER}.weight_scale", lambda t: t * 0), "ternary weights is 0"),
    ("trits and scale", "a two", _set(f"{LAYER}.weight", _poke(2)), "is not ternary"),
    ("trits and scale", "NaN", _set(f"{LAYER}.weight", _poke(np.nan)), "up_proj.weight"),
    ("master", "NaN", _set(f"{LAYER}.weight", _poke(np.nan)), "up_proj.weight"),
    ("master", "inf", _set(f"{LAYER}.weight", _poke(np.inf)), "up_proj.weight"),
    ("packed", "no sub-norm", lambda state: state.pop(SUB_NORM) is None, "ffn_sub_norm.weight is missing"),
]  # fmt: skip


@pytest.mark.parametrize(("form", "what", "edit", "wanted"), BAD, ids=[f"{form}: {what}" for form, what, _, _ in BAD])
def test_bad_folder(form: str, what: str, edit: Any, wanted: str, model: Bitnet, tmp_path: Path) -> None:
    folder = write_folder(model, form, tmp_path / "hf")
    state = load_file(folder / "model.safetensors")
    edit(state)
    save_file({name: values.contiguous() for name, values in state.items()}, folder / "model.safetensors")
    text = message(folder, tmp_path)
    assert wanted in text, text


def _gguf_place(path: Path, name: str) -> int:
    from edgerun_exporters.readers.gguf_header import read_header

    return read_header(path).tensors[name].offset


@pytest.mark.parametrize(
    ("form", "at", "content", "wanted"),
    [
        ("F16", 2 * 70, np.float16(0.3).tobytes(), "is not ternary: at row 0, column 70 it holds 0.3"),
        ("F16", 2 * 70, np.float16(np.nan).tobytes(), "blk.1.ffn_up.weight"),
        ("TQ2_0", 66 * 5 + 64, np.float16(0.5).tobytes(), "is not ternary: at row 5, column 0"),
        ("TQ2_0", 64, np.float16(np.inf).tobytes(), "blk.1.ffn_up.weight"),
        ("I2_S", 3, b"\xff", "is not ternary: at row 0, column 3 it holds nan"),
        ("I2_S", 512 * 256 // 4, np.float32(0).tobytes(), "scale of its ternary weights is 0"),
        ("I2_S", 512 * 256 // 4, np.float32(-1).tobytes(), "scale of its ternary weights is -1"),
        ("I2_S", 512 * 256 // 4, np.float32(np.inf).tobytes(), "scale of its ternary weights is inf"),
    ],
)
def test_bad_gguf(form: str, at: int, content: bytes, wanted: str, model: Bitnet, tmp_path: Path) -> None:
    path = write_gguf(model, form, tmp_path / "m.gguf")
    data = bytearray(path.read_bytes())
    start = _gguf_place(path, "blk.1.ffn_up.weight") + at
    data[start : start + len(content)] = content
    path.write_bytes(data)
    text = message(path, tmp_path)
    assert wanted in text, text


def test_all_zeros(model: Bitnet, tmp_path: Path) -> None:
    state = {**model.state, f"{LAYER}.weight": torch.zeros_like(model.state[f"{LAYER}.weight"])}
    path = write_gguf(Bitnet(model.config, state), "F16", tmp_path / "m.gguf")
    assert "scale of its ternary weights is 0" in message(path, tmp_path)


def test_truncated_i2_s(model: Bitnet, tmp_path: Path) -> None:
    path = write_gguf(model, "I2_S", tmp_path / "m.gguf")
    path.write_bytes(path.read_bytes()[:-100_000])
    assert "truncated" in message(path, tmp_path)


def test_rows_that_cannot_be_packed_by_four(tmp_path: Path) -> None:
    model = random_bitnet(**{**ODD_SIZES, "intermediate_size": 98})
    folder = write_folder(model, "packed", tmp_path / "hf")
    assert "contradicts itself" in message(folder, tmp_path)
