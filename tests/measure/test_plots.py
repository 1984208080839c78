"""Figures are files of the named kind, and what stands in the way is one clear error."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edgerun.errors import OptionError
from edgerun.measure import plots
from edgerun.measure.evaluate import Evaluation
from edgerun.measure.tasks.needle import Cell

CELLS = [Cell(length, depth, 2, 0.5, 1.0) for length in (100, 200) for depth in (0.25, 0.75)]


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".SVG", b"<?xml")])
def test_kinds_of_files(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / f"a{suffix}"
    plots.check(path)
    plots.needles(path, CELLS, "a title", "exact")
    assert path.read_bytes().startswith(start)
    plots.needles(path, CELLS, "a title", None)
    loss = np.ones((3, 5))
    for result in (Evaluation(loss, 6), Evaluation(loss, 6, loss, loss, loss > 0)):
        plots.by_position(path, result, "a title", "exact")
        assert path.read_bytes().startswith(start)
    points = {"one": [(0.1, 1.0), (0.2, 2.0)], "two": [(0.1, 3.0)]}
    plots.curves(path, points, title="t", x="x", y="y", log_y=True, marks={"two": ["here"]})
    assert path.read_bytes().startswith(start)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_the_same_figures_give_the_same_file(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        plots.needles(tmp_path / name, CELLS, "a title", "exact")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_what_stands_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"written as \.png or \.svg"):
        plots.check(tmp_path / "a.jpg")
    with pytest.raises(OptionError, match="no folder that can be written to"):
        plots.check(tmp_path / "missing" / "a.png")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r'pip install "edgerun\[plot\]"'):
        plots.check(tmp_path / "a.png")
