"""Figures of what was measured, as PNG or SVG, drawn by matplotlib (the extra "plot")."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgerun.errors import EdgerunError, OptionError

if TYPE_CHECKING:
    from edgerun.measure.evaluate import Evaluation
    from edgerun.measure.tasks.needle import Cell

SUFFIXES = (".png", ".svg")
STYLE: Mapping[str, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.dpi": 150,
    "svg.hashsalt": "edgerun",  # the same figures give the same file
}
BINS = 32


def check(path: Path) -> None:
    """Raises OptionError, before anything is measured in vain, if no figure could be written to `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{path}: figures are written as {' or '.join(SUFFIXES)}; name such a file")
    if importlib.util.find_spec("matplotlib") is None:
        raise OptionError('figures are drawn by matplotlib, which is not installed: pip install "edgerun[plot]"')
    if not os.access(path.parent, os.W_OK):
        raise OptionError(f"{path}: {path.parent} is no folder that can be written to; name another")


def by_position(path: Path, result: Evaluation, title: str, against: str | None) -> None:
    """KL, if there is something to compare with, else the loss, by position in the window, in up to BINS bins."""
    values = result.losses if result.divergences is None else result.divergences
    parts = np.array_split(np.arange(values.shape[1]), min(BINS, values.shape[1]))
    positions = [result.first + part.mean() for part in parts]
    what = "-log p of the text's token" if result.divergences is None else f"KL from {against}"
    curves(
        path,
        {"": [(position, float(values[:, part].mean())) for position, part in zip(positions, parts, strict=True)]},
        title=f"{title}: {what}",
        x="position in the window (tokens)",
        y="nats a token",
    )


def needles(path: Path, cells: Sequence[Cell], title: str, against: str | None) -> None:
    """The share of needles found, by length and depth; beside it the reference's, if there is one."""
    panels = [("as measured", {(cell.length, cell.depth): cell.found for cell in cells})]
    if against is not None:
        shares = {(cell.length, cell.depth): cell.against or 0.0 for cell in cells}
        panels.insert(0, (f"compared with: {against}", shares))
    lengths, depths = sorted({cell.length for cell in cells}), sorted({cell.depth for cell in cells})
    plt = _pyplot()
    size = max(4.5, 1.5 + 0.9 * len(lengths)) * len(panels) + 1, max(3.5, 1.8 + 0.45 * len(depths))
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False, sharey=True)
        for axis, (name, shares) in zip(axes[0], panels, strict=True):
            table = np.array([[shares[length, depth] for length in lengths] for depth in depths])
            image = axis.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (row, column), share in np.ndenumerate(table):
                axis.text(
                    column, row, f"{share:.0%}", ha="center", va="center", color="white" if share < 0.6 else "black"
                )
            axis.set_xticks(range(len(lengths)), [f"{length:,}" for length in lengths])
            axis.set_yticks(range(len(depths)), [f"{depth:.0%}" for depth in depths])
            axis.set_xlabel("length of the text (tokens)")
            axis.set_title(name)
        figure.suptitle(title, wrap=True)
        axes[0][0].set_ylabel("depth of the needle")
        figure.colorbar(image, ax=axes, label="share of needles found", format=lambda share, _: f"{share:.0%}")
        _save(figure, path)


def curves(
    path: Path,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    title: str,
    x: str,
    y: str,
    log_y: bool = False,
    marks: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Lines through points (x, y); `marks` are words beside a series' points."""
    plt = _pyplot()
    with plt.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7.5, 4.5), layout="constrained")
        for i, (name, points) in enumerate(series.items()):
            xs, ys = zip(*points, strict=True)
            (line,) = axis.plot(xs, ys, marker="o", markersize=4, label=name)
            for place, word in zip(points, (marks or {}).get(name, ()), strict=False):
                # Series in turn above and below their points, so that neighbours can be read.
                side = {"xytext": (0, -14 if i % 2 else 6), "textcoords": "offset points", "ha": "center"}
                axis.annotate(word, place, fontsize=8, color=line.get_color(), **side)
        if log_y:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.margins(x=0.15, y=0.15)
        else:
            axis.set_ylim(bottom=0)
        axis.xaxis.set_major_formatter("{x:,.0f}")
        axis.set(xlabel=x, ylabel=y)
        axis.set_title(title, wrap=True)
        if len(series) > 1:
            axis.legend(frameon=False)
        _save(figure, path)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")  # no window, no display
    import matplotlib.pyplot

    return matplotlib.pyplot


def _save(figure: Any, path: Path) -> None:
    """Written beside and renamed."""
    beside = path.with_name(f".{path.name}.partial-{os.getpid()}")
    kind = path.suffix.lower().removeprefix(".")
    try:
        figure.savefig(beside, format=kind, metadata={"Date": None} if kind == "svg" else None)
        os.replace(beside, path)
    except OSError as error:
        raise EdgerunError(f"{path}: the figure cannot be written ({error.strerror})") from error
    finally:
        beside.unlink(missing_ok=True)
        _pyplot().close(figure)
