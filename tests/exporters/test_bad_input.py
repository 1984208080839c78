"""What is wrong with a checkpoint is said in one line that names the file, the tensor or field, and what to do."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun.errors import CheckpointError
from edgerun_exporters import export

from .made import random_model, save, write_gguf


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with m.gguf and hf/ (in shards)."""
    folder = tmp_path_factory.mktemp("good")
    model = random_model()
    write_gguf(model, folder / "m.gguf", {"": "Q4_0"})
    save(model, folder / "hf", shard="60KB")
    save(model, folder / "single")
    return folder


def message(source: Path, out: Path) -> str:
    """Of the CheckpointError that this export ends with; nothing is left behind."""
    with pytest.raises(CheckpointError) as caught:
        export(source, out / "pkg")
    text = str(caught.value)
    assert "\n" not in text and len(text) < 500
    assert not list(out.glob("pkg*"))
    return text


def test_no_checkpoint_at_all(tmp_path: Path) -> None:
    assert "no such file" in message(tmp_path / "none.gguf", tmp_path)
    (tmp_path / "x.gguf").write_bytes(b"PK\3\4" + bytes(100))
    assert "x.gguf: not a checkpoint" in message(tmp_path / "x.gguf", tmp_path)
    (tmp_path / "empty.gguf").write_bytes(b"")
    assert "not a checkpoint" in message(tmp_path / "empty.gguf", tmp_path)
    (tmp_path / "folder").mkdir()
    assert "config.json: no such file" in message(tmp_path / "folder", tmp_path)
    (tmp_path / "folder" / "config.json").write_text('{"model_type": "llama"}')
    assert "no safetensors file" in message(tmp_path / "folder", tmp_path)
    (tmp_path / "folder" / "config.json").write_text('{"model_type"')
    assert "config.json: cannot be read as JSON" in message(tmp_path / "folder", tmp_path)


def test_truncated_gguf(good: Path, tmp_path: Path) -> None:
    data = (good / "m.gguf").read_bytes()
    bad = tmp_path / "bad.gguf"
    for size in (4, 11, 24, 100, 5000, len(data) // 2, len(data) - 64):
        bad.write_bytes(data[:size])
        text = message(bad, tmp_path)
        assert "bad.gguf: truncated" in text and "download it again" in text
    assert "tensor " in text


def test_damaged_gguf_headers_never_crash(good: Path, tmp_path: Path) -> None:
    data = (good / "m.gguf").read_bytes()
    dice = random.Random(0)
    bad = tmp_path / "bad.gguf"
    for _ in range(150):
        broken = bytearray(data)
        broken[dice.randrange(7000)] ^= 1 << dice.randrange(8)
        bad.write_bytes(broken)
        try:
            export(bad, tmp_path / "pkg")
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_other_gguf_versions(good: Path, tmp_path: Path) -> None:
    data = (good / "m.gguf").read_bytes()
    for version, words in ((struct.pack("<I", 1), "version 1"), (struct.pack(">I", 3), "big-endian")):
        (tmp_path / "v.gguf").write_bytes(data[:4] + version + data[8:])
        assert words in message(tmp_path / "v.gguf", tmp_path)


def gguf_with(path: Path, architecture: str = "llama", **changes: Any) -> Path:
    """A header with a minimal configuration and two tensors. Keys with "." are written as they are."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    values = {
        f"{architecture}.{key}": value
        for key, value in {
            "embedding_length": 64,
            "block_count": 1,
            "feed_forward_length": 96,
            "attention.head_count": 4,
            "context_length": 64,
        }.items()
    }
    values.update({f"{architecture}.{key.replace('__', '.')}": value for key, value in changes.items()})
    for key, value in values.items():
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    writer.add_tensor("token_embd.weight", np.zeros((10, 64), np.float32))
    writer.add_tensor("output_norm.weight", np.zeros(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"architecture": "mamba"},
            "architecture 'mamba' is not supported (supported: bitnet, bitnet-25, bitnet-b1.58, llama, mistral, qwen2",
        ),
        ({"rope__scaling__type": "yarn"}, "rope.scaling.type 'yarn' is not supported"),
        ({"rope__dimension_count": 8}, "partial rotary"),
        ({"expert_count": 8}, "mixtures of experts"),
        ({"attention__head_count": [4, 2]}, "head_count differs from layer to layer"),
        ({"attention__head_count": 0}, "head_count is 0"),
        ({"attention__head_count_kv": 3}, "4 attention heads are no multiple of 3"),
        ({"attention__key_length": 15}, "odd"),
        ({"attention__key_length": 2**31}, "key_length is 2147483648"),
        ({"attention__value_length": 8}, "value_length differs"),
        ({"block_count": "two"}, "block_count is 'two'"),
        ({"embedding_length": 65, "attention__key_length": 16}, "output_norm.weight has shape [64]"),
        ({}, "tensor blk.0.attn_q.weight is missing (expected shape [64, 64])"),
    ],
)
def test_unsupported_gguf(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = gguf_with(tmp_path / "g.gguf", **changes)
    text = message(path, tmp_path)
    assert words in text and str(path) in text


def edit(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def test_split_gguf(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "s.gguf", "llama")
    writer.add_uint16("split.count", 3)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    assert "split GGUF" in message(tmp_path / "s.gguf", tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gemma2"}, "architecture 'gemma2' is not supported"),
        ({"rope_parameters": None, "rope_scaling": {"type": "yarn", "factor": 2}}, "'yarn' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope"}}, "'longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "linear"}}, "factor is None"),
        ({"rope_parameters": {"full_attention": {}}}, "differ from layer to layer"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu' is not supported"),
        ({"quantization_config": {"quant_method": "gptq"}}, "gptq-quantised"),
        ({"num_hidden_layers": 3}, "tensor model.layers.2.self_attn.q_proj.weight is missing"),
        ({"num_hidden_layers": 1}, "layers.1.input_layernorm.weight has no place in a Llama of 1 layers"),
        ({"intermediate_size": 97}, "model.layers.0.mlp.gate_proj.weight has shape [96, 64]"),
        ({"vocab_size": None}, "vocab_size is None"),
        ({"rms_norm_eps": "small"}, "rms_norm_eps is 'small'"),
    ],
)
def test_unsupported_folder(changes: dict[str, Any], words: str, good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good / "single", tmp_path / "hf"))
    edit(folder, **changes)
    text = message(folder, tmp_path)
    assert words in text and str(folder) in text


def rewrite(path: Path, change: Callable[[dict[str, Any], bytes], bytes]) -> None:
    """Changes a safetensors file: `change` edits the directory in place and returns the data."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    directory = json.loads(data[8 : 8 + length])
    payload = change(directory, data[8 + length :])
    head = json.dumps(directory).encode()
    path.write_bytes(len(head).to_bytes(8, "little") + head + payload)


def test_damaged_safetensors(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good / "single", tmp_path / "hf"))
    file = folder / "model.safetensors"
    data = file.read_bytes()
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:size])
        assert "model.safetensors: truncated" in message(folder, tmp_path)
    file.write_bytes(data[:8] + b"x" + data[9:])
    assert "header is damaged" in message(folder, tmp_path)
    name = "model.norm.weight"
    for change, words in (
        ({"dtype": "F4"}, "unknown dtype F4"),
        ({"dtype": "I32"}, "dtype I32; only f32, f16 and bf16"),
        ({"shape": [65]}, "its size and its shape disagree"),
        ({"data_offsets": [1 << 40, (1 << 40) + 256]}, "truncated: tensor model.norm.weight"),
    ):
        file.write_bytes(data)

        def apply(directory: dict[str, Any], payload: bytes, change: dict[str, Any] = change) -> bytes:
            directory[name].update(change)
            return payload

        rewrite(file, apply)
        assert words in message(folder, tmp_path)


def test_values_that_are_no_numbers(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good / "single", tmp_path / "hf"))
    for name in ("model.norm.weight", "model.layers.1.mlp.up_proj.weight"):
        shutil.copy(good / "single" / "model.safetensors", folder)

        def poison(directory: dict[str, Any], payload: bytes, name: str = name) -> bytes:
            at = directory[name]["data_offsets"][0] + 8
            return payload[:at] + struct.pack("<f", float("nan")) + payload[at + 4 :]

        rewrite(folder / "model.safetensors", poison)
        assert "no numbers" in message(folder, tmp_path)


def test_shards(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good / "hf", tmp_path / "hf"))
    index = folder / "model.safetensors.index.json"
    contents = json.loads(index.read_text())
    first = sorted(folder.glob("*.safetensors"))[0]
    first.rename(folder / "aside")
    assert f"{first}: cannot be opened (No such file" in message(folder, tmp_path)
    (folder / "aside").rename(first)
    index.rename(folder / "aside")
    assert "index.json: no such file" in message(folder, tmp_path)
    name = next(iter(contents["weight_map"]))
    for place, words in (("../elsewhere.safetensors", "not a file of the folder"), (None, "not a file of the folder")):
        index.write_text(json.dumps({"weight_map": {**contents["weight_map"], name: place}}))
        assert words in message(folder, tmp_path)
    index.write_text(json.dumps({"weight_map": {**contents["weight_map"], "ghost": first.name}}))
    assert "tensor ghost is missing, but the index names it here" in message(folder, tmp_path)
    index.write_text("{}")
    assert "weight_map is missing" in message(folder, tmp_path)


def test_no_tokenizer(good: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(good / "single", tmp_path / "hf"))
    (folder / "tokenizer.json").write_text("{}")
    assert "tokenizer.json: cannot be read" in message(folder, tmp_path)
    (folder / "tokenizer.json").unlink()
    assert "neither tokenizer.json nor tokenizer.model" in message(folder, tmp_path)
