"""Sound packages open, as views of the mapped file, quickly and without heavy imports; and onnxruntime runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgerun.errors import PackageError
from edgerun.package import operators
from edgerun.program.open import open_package
from tests.package import tiny
from tests.package.tiny import Shape

VARIATIONS = {
    "tied": Shape(),
    "separate head, biases": Shape(tied=False, biases=True),
    "float32": Shape(linear="f32", embedding="f32"),
    "symmetric": Shape(linear="q4", embedding="q4"),
    "8 bits, multi-query": Shape(linear="q8", embedding="q4m", n_kv_heads=1),
    "6 bits": Shape(linear="q6k", embedding="q6k", hidden_size=300),
    "ternary": tiny.BITNET,
    "ternary, separate head, biases": replace(tiny.BITNET, tied=False, embedding="q8", biases=True),
    "sub-norms, squared ReLU, biases": Shape(sub_norms=True, gate="SquaredReLU", biases=True),
    "large tensors": Shape(n_layers=1, vocab_size=4099, n_heads=2),
}


@pytest.mark.parametrize("shape", VARIATIONS.values(), ids=VARIATIONS)
def test_a_sound_package(tmp_path: Path, shape: Shape) -> None:
    parts = tiny.build(shape)
    folder = parts.write(tmp_path)
    package = open_package(folder)
    assert package.folder == folder
    assert package.bytes == sum(file.stat().st_size for file in folder.iterdir())
    assert package.graph.SerializeToString() == parts.model.graph.SerializeToString()
    stated = {name: getattr(package.config, name) for name in parts.config}
    assert stated == json.loads((folder / "edgerun.json").read_text())
    for name, stored in parts.tensors.items():
        view = package.tensor(name)
        assert view.dtype == stored.dtype
        np.testing.assert_array_equal(view, stored)
        assert not view.flags.writeable
        assert not view.flags.owndata
        assert view.ctypes.data % 64 == 0
    with pytest.raises(PackageError, match="there is no tensor 'nothing'"):
        package.tensor("nothing")


@pytest.mark.parametrize("shape", VARIATIONS.values(), ids=VARIATIONS)
def test_onnxruntime_runs_it_and_the_cache_continues(tmp_path: Path, shape: Shape) -> None:
    path = tiny.make(tmp_path, shape) / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    session = ort.InferenceSession(str(path))
    names = [output.name for output in session.get_outputs()]

    def run(ids: list[int], past: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        length = next(iter(past.values())).shape[2]
        positions = np.arange(length, length + len(ids))[None]
        given = {f"past_key_values.{name.removeprefix('present.')}": array for name, array in past.items()}
        outputs = session.run(names, {"input_ids": np.array([ids]), "position_ids": positions, **given})
        return dict(zip(names, outputs, strict=True))

    empty = {n: np.zeros((1, shape.n_kv_heads, 0, shape.head_dim), np.float32) for n in names if n != "logits"}
    whole = run([3, 1, 4, 1, 5], empty)
    first = run([3, 1, 4], empty)
    rest = run([1, 5], {name: array for name, array in first.items() if name != "logits"})
    assert whole["logits"].shape == (1, 5, shape.vocab_size)
    assert whole["logits"].std() > 0.1
    np.testing.assert_allclose(rest["logits"], whole["logits"][:, 3:], rtol=0, atol=1e-4)


def test_small_tensors_may_lie_in_the_graph(tmp_path: Path) -> None:
    def inline(parts: tiny.Parts) -> None:
        for tensor in parts.model.graph.initializer:
            del tensor.external_data[:]
            tensor.ClearField("data_location")
            tensor.raw_data = parts.tensors[tensor.name].tobytes()
        parts.data.clear()

    folder = tiny.make(tmp_path, change=inline)
    (folder / "model.onnx.data").unlink()
    package = open_package(folder)
    for name, stored in tiny.build().tensors.items():
        view = package.tensor(name)
        np.testing.assert_array_equal(view, stored)
        assert not view.flags.writeable
        assert view.ctypes.data % 64 == 0


def test_a_package_that_onnx_saved_again_opens(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path)
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    model.doc_string = model.functions[0].doc_string = "looked at"
    model.functions[0].node[0].name = "named"
    model.metadata_props.add(key="by", value="hand")
    onnx.save(model, str(folder / "model.onnx"))
    assert open_package(folder).config.name == "tiny"


def test_reading_imports_neither_onnx_nor_a_runtime(tmp_path: Path) -> None:
    folder = tiny.make(tmp_path)
    program = (
        "import sys; from edgerun.program.open import open_package\n"
        "package = open_package(sys.argv[1])\n"
        "heavy = {'onnx', 'onnxruntime', 'numba', 'jinja2', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "import onnx; assert isinstance(package.graph, onnx.GraphProto)\n"
    )
    subprocess.run([sys.executable, "-c", program, str(folder)], check=True, env=None, cwd=Path(__file__).parents[2])


def test_fingerprints_are_those_of_the_functions() -> None:
    assert {f.name: operators.fingerprint(f) for f in operators.functions()} == operators.FINGERPRINTS
