"""The variant file: what is written is read, and what is broken is refused with one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgerun import VariantError
from edgerun.variants.coding import decode, encode
from edgerun.variants.store import DenseDelta, SparseDelta, Variant, open_variant, write_variant
from tests.kernels.deltas import masked, top, windows

RNG = np.random.default_rng(3)
DELTAS = {
    "a.weight": windows(40, 90, 20, RNG),
    "b.weight": top(20, 600, 2, RNG),  # gaps of more than 255 columns
    "c.weight": masked(5, 7, 0.0, RNG),
    "norm.weight": DenseDelta(RNG.standard_normal(90).astype(np.float32)),
}


def write(path: Path, **changes: Any) -> Path:
    said = {"base": "b" * 64, "method": "dare", "parameters": {"p": 0.95}, "quality": {"score": 0.5}, **changes}
    write_variant(path, DELTAS.items(), **said)
    return path


def same(a: Any, b: Any) -> None:
    if isinstance(a, DenseDelta):
        np.testing.assert_array_equal(a.values, b.values)
    else:
        assert a.shape == b.shape
        np.testing.assert_array_equal(a.dense(), b.dense())


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_written_is_read(tmp_path: Path, bits: int) -> None:
    variant = open_variant(write(tmp_path / "x.safetensors", bits=bits))
    assert (variant.name, variant.method, variant.base) == ("x", "dare", "b" * 64)
    assert (variant.parameters, variant.quality) == ({"p": 0.95}, {"score": 0.5})
    assert sorted(variant.names()) == sorted(DELTAS)
    for name, delta in DELTAS.items():
        wanted = delta if isinstance(delta, DenseDelta) else decode(encode(delta, bits))
        same(variant.delta(name), wanted)
    assert variant.bytes == (tmp_path / "x.safetensors").stat().st_size
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_safetensors_reads_it_too(tmp_path: Path) -> None:
    from safetensors import safe_open

    with safe_open(str(write(tmp_path / "x.safetensors")), "pt") as file:
        assert file.metadata()["format"] == "edgerun-variant"
        assert "a.weight.codes" in file.keys()  # noqa: SIM118


def test_the_same_deltas_give_the_same_bytes(tmp_path: Path) -> None:
    assert write(tmp_path / "x").read_bytes() == write(tmp_path / "y").read_bytes()


@pytest.mark.parametrize("place", ["header", "payload", "end", "metadata"])
def test_an_edited_byte_is_noticed(tmp_path: Path, place: str) -> None:
    path = write(tmp_path / "x.safetensors")
    whole = bytearray(path.read_bytes())
    length = int.from_bytes(whole[:8], "little")
    if place == "metadata":
        at = whole.index(b'"dare"') + 2
    else:
        at = {"header": 12, "payload": 8 + length + 5, "end": len(whole) - 1}[place]
    whole[at] ^= 1
    path.write_bytes(whole)
    with pytest.raises(VariantError, match=r"damaged|not a variant"):
        open_variant(path)


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors")
    whole = path.read_bytes()
    for length in (0, 7, 20, 200, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(VariantError, match=r"x\.safetensors"):
            open_variant(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(VariantError, match="damaged"):
        open_variant(path)


def forged(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Path:
    """A file with a right checksum whose coded matrices, or what is said of them, were changed."""
    from edgerun.variants import store

    class Forger(store._Writer):
        def add(self, name: str, delta: SparseDelta | DenseDelta) -> None:
            if isinstance(delta, DenseDelta):
                self._append(f"{name}.delta", delta.values)
                return
            coded = encode(delta)
            arrays = {"codes": coded.codes, "scales": coded.scales, "starts": coded.starts}
            said = {"shape": list(coded.shape), "window": coded.window, "bits": coded.bits}
            if name == "a.weight" or name == "b.weight":
                change(arrays, said)
            for suffix, array in arrays.items():
                if array is not None:
                    self._append(f"{name}.{suffix}", array)
            self.matrices[name] = said

    original = store._Writer
    store._Writer = Forger  # type: ignore[misc]
    try:
        return write(path)
    finally:
        store._Writer = original  # type: ignore[misc]


def poke(key: str, value: int, where: Any = 0) -> Callable[[dict[str, Any], dict[str, Any]], None]:
    def change(arrays: dict[str, Any], said: dict[str, Any]) -> None:
        arrays[key] = arrays[key].copy()
        arrays[key][where] = value

    return change


def in_gaps(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Any:
    return lambda arrays, said: change(arrays, said) if arrays["starts"] is not None else None


def in_windows(change: Callable[[dict[str, Any], dict[str, Any]], None]) -> Any:
    return lambda arrays, said: change(arrays, said) if arrays["starts"] is None else None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (in_windows(poke("codes", 20, (0, 0, 3))), "a position is 20, out of its window of 20"),
        (in_windows(poke("codes", 10, (2, 0, 3))), "a position is 10, beyond the last column, 9"),
        (in_gaps(poke("codes", 255, (slice(None), 0))), "positions end at column"),
        (in_gaps(poke("codes", 0, (slice(None), 0))), "out of order"),
        (in_gaps(poke("starts", 5, 1)), "damaged"),
        (in_gaps(poke("starts", -1, 1)), "starts do not ascend"),
        (poke("scales", 0x7F80, 0), "scales are no finite"),
        (poke("scales", 0x7FC0, 1), "scales are no finite"),
        (lambda arrays, said: said.update(window=19), "damaged"),
        (lambda arrays, said: said.update(window=600), "damaged"),
        (lambda arrays, said: said.update(window=-1), "damaged"),
        (lambda arrays, said: said.update(bits=8), "damaged"),
        (lambda arrays, said: said.update(bits=3), "damaged"),
        (lambda arrays, said: said.update(shape=[1 << 40, 90]), "damaged"),
        (lambda arrays, said: said.update(shape=[40, 0]), "damaged"),
        (lambda arrays, said: said.update(shape="x"), "damaged"),
        (lambda arrays, said: said.pop("bits"), "damaged"),
        (lambda arrays, said: arrays.pop("scales"), "damaged"),
        (lambda arrays, said: arrays.update(codes=arrays["codes"][:-1]), "units|starts"),
        (lambda arrays, said: arrays.update(scales=arrays["scales"][:-1]), "scales are"),
        (lambda arrays, said: arrays.update(other=arrays["scales"]), "belongs to no matrix"),
    ],
)
def test_contents_that_a_kernel_must_not_see(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None], message: str
) -> None:
    with pytest.raises(VariantError, match=message) as error:
        open_variant(forged(tmp_path / "x.safetensors", change))
    assert "\n" not in str(error.value)


def test_a_vector_that_is_no_number(tmp_path: Path) -> None:
    bad = DenseDelta(np.array([1, np.nan], np.float32))
    with pytest.raises(VariantError, match="finite"):
        write_variant(tmp_path / "x", [("n", bad)], base="b", method="m", parameters={})


@pytest.mark.parametrize(
    ("counts", "columns", "values", "message"),
    [
        ([1, 1], [0, 5], [1, 1], "columns from 0 to 5, expected 0 to 4"),
        ([2, 0], [3, 3], [1, 1], "do not ascend"),
        ([2, 0], [3, 1], [1, 1], "do not ascend"),
        ([1, 0], [3, 1], [1, 1], "1 elements in all"),
        ([1, 1], [0, 1], [1, np.inf], "no numbers"),
        ([2], [0, 1], [1, 1], "do not fit its shape"),
    ],
)
def test_deltas_that_make_no_sense(
    tmp_path: Path, counts: list[int], columns: list[int], values: list[float], message: str
) -> None:
    arrays = np.array(counts, np.int32), np.array(columns, np.int32), np.array(values, np.float32)
    with pytest.raises(VariantError, match=message):
        write_variant(tmp_path / "x", [("w", SparseDelta((2, 5), *arrays))], base="b", method="m", parameters={})
    assert not list(tmp_path.iterdir())


def test_other_files_are_no_variants(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "x.safetensors"
    save_file({"a": np.zeros(3, np.float32)}, str(path))
    with pytest.raises(VariantError, match="other safetensors"):
        open_variant(path)
    path.write_bytes(b"GGUF" * 100)
    with pytest.raises(VariantError, match="no safetensors header"):
        open_variant(path)
    path.write_bytes((20).to_bytes(8, "little") + b'{"a":' + b" " * 40)
    with pytest.raises(VariantError, match="makes no sense"):
        open_variant(path)
    with pytest.raises(VariantError, match="no such variant"):
        open_variant(tmp_path / "none")
    with pytest.raises(VariantError, match="cannot be"):
        open_variant(tmp_path)


def test_a_newer_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgerun.variants.store.VERSION", 2)
    path = write(tmp_path / "x")
    monkeypatch.undo()
    with pytest.raises(VariantError, match="format version 2, this edgerun reads up to 1"):
        open_variant(path)


def test_metadata_is_json(tmp_path: Path) -> None:
    variant: Variant = open_variant(write(tmp_path / "x", parameters={"layers": {"a": [1, 2.5]}}))
    assert json.loads(json.dumps(dict(variant.parameters))) == {"layers": {"a": [1, 2.5]}}
