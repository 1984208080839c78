"""The fingerprint of original weights: of values, not of files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np

from edgerun_exporters import export, fingerprint

from .made import random_model, save, write_gguf


def test_the_same_weights_in_any_file(tmp_path: Path) -> None:
    model = random_model()
    whole = fingerprint(save(model, tmp_path / "whole"))
    assert len(whole) == 64
    assert fingerprint(save(model, tmp_path / "shards", shard="50KB")) == whole
    assert fingerprint(write_gguf(model, tmp_path / "m.gguf")) == whole
    rounded = save(model, tmp_path / "rounded", dtype="bfloat16")  # the model itself is rounded, too
    assert whole != fingerprint(rounded) == fingerprint(write_gguf(model, tmp_path / "m.gguf"))


def test_every_weight_counts(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    folder = save(random_model(), tmp_path / "a")
    whole, tensors = fingerprint(folder), load_file(str(folder / "model.safetensors"))
    shutil.copytree(folder, tmp_path / "b")
    for name, values in tensors.items():
        changed = np.array(values)
        changed.reshape(-1)[-1] += 1
        save_file({**tensors, name: changed}, str(tmp_path / "b" / "model.safetensors"))
        assert fingerprint(tmp_path / "b") != whole, name


def test_packages_of_one_checkpoint_share_it(tmp_path: Path) -> None:
    folder = save(random_model(), tmp_path / "a")
    for quant in ("q4", "q8", "f32"):
        export(folder, tmp_path / quant, quant=quant)
        config = json.loads((tmp_path / quant / "edgerun.json").read_text())
        assert config["source"]["fingerprint"] == fingerprint(folder)
