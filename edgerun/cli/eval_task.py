"""`edgerun eval MODEL --task NAME`: needles, multiple choice, questions about a passage."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.attention.spec import FULL
from edgerun.cli.eval_against import described, reference
from edgerun.cli.options import RuntimeOptions
from edgerun.cli.progress import ProgressBar, resolve
from edgerun.cli.text_input import read_text
from edgerun.errors import OptionError
from edgerun.measure import plots
from edgerun.progress import Progress
from edgerun.sparsity.spec import NONE

if TYPE_CHECKING:
    from edgerun.measure.tasks.needle import Cell
    from edgerun.measure.tasks.reader import Reader
    from edgerun.measure.tasks.score import Metrics, Score
    from edgerun.model import Model

GRASS = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again. "
"""Haystack of passkey retrieval (Mohtashami and Jaggi, arXiv 2305.16300)."""
DEFAULTS = {"choice": "boolq", "qa": "disflqa"}
Measure = Callable[["Reader", Progress], "Metrics"]


def needle(
    model: str,
    runtime: RuntimeOptions,
    against: str | None,
    text: Path | None,
    lengths: tuple[int, ...],
    depths: int,
    repeat: int,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Measures and prints; the options are those of the command."""
    from edgerun.measure.tasks import needle as task

    hay = GRASS if text is None else read_text(text)
    folder = resolve(model)
    with runtime.load(str(folder)) as loaded:
        runtime = replace(runtime, attention=loaded.attention, sparsity=loaded.sparsity)
        hidden = task.needles(loaded.tokenizer, hay, lengths, task.even_depths(depths), repeat, loaded.context)
        ours, theirs, sparsity = _measured(
            lambda reader, progress: task.measure(reader, hidden, progress), folder, loaded, runtime, against
        )
    cells = task.cells(hidden, ours["found"], None if theirs is None else theirs["found"])
    again = ours["found"] if theirs is None else ours["found"][theirs["found"] > 0]
    kept = None if theirs is None or not len(again) else float(again.mean())
    if plot is not None:
        plots.needles(plot, cells, f"{model}, attention {runtime.attention or FULL}", against)
    found = _scores(ours, theirs)
    if as_json:
        figures = {
            "task": "needle",
            "needles": len(hidden),
            "kept": kept,
            "kept_of": None if theirs is None else len(again),
            "cells": [asdict(cell) for cell in cells],
        }
        _echo(model, runtime, against, figures, found, sparsity)
        return
    _print_cells(cells)
    _print(found, len(hidden), against, sparsity)
    if kept is not None:
        click.echo(f"of the {len(again)} needles that {against} finds, {kept:.1%} are found")


def questions(
    model: str,
    runtime: RuntimeOptions,
    against: str | None,
    task: str,
    data: str | None,
    limit: int,
    shots: int,
    as_json: bool,
) -> None:
    """Measures and prints; the options are those of the command."""
    from edgerun.measure.tasks import choice, qa

    name = data or DEFAULTS[task]
    path = _file(task, name)
    folder = resolve(model)
    measure: Measure
    if task == "choice":
        choices = choice.asked(choice.load(path), limit, shots)
        count, measure = len(choices), lambda reader, progress: choice.measure(reader, choices, progress)
    else:
        asked = qa.asked(qa.load(path), limit, shots)
        count, measure = len(asked), lambda reader, progress: qa.measure(reader, asked, progress)
    with runtime.load(str(folder)) as loaded:
        runtime = replace(runtime, attention=loaded.attention, sparsity=loaded.sparsity)
        ours, theirs, sparsity = _measured(measure, folder, loaded, runtime, against)
    found = _scores(ours, theirs)
    if as_json:
        _echo(
            model, runtime, against, {"task": task, "data": name, "questions": count, "shots": shots}, found, sparsity
        )
        return
    _print(found, count, against, sparsity)


def _file(task: str, name: str) -> Path:
    from edgerun.measure.tasks.samples import SAMPLES, fetch

    if name in SAMPLES:
        if SAMPLES[name].task != task:
            fitting = ", ".join(other for other, sample in SAMPLES.items() if sample.task == task)
            raise OptionError(f"{name} is for --task {SAMPLES[name].task}; for {task} there are {fitting}, or a file")
        with ProgressBar() as progress:
            return fetch(name, progress)
    path = Path(name)
    if not path.is_file():
        raise OptionError(f"{name} is neither a file nor one of {', '.join(SAMPLES)}; give the questions' file")
    return path


def _measured(
    measure: Measure, folder: Path, model: Model, runtime: RuntimeOptions, against: str | None
) -> tuple[Metrics, Metrics | None, float]:
    """What the model gives, what the reference gives, and the model's sparsity."""
    from edgerun.measure.tasks.reader import SessionReader

    if against == "onnxruntime":
        raise OptionError("tasks cannot be run in onnxruntime; compare with full, exact or another model")
    with nullcontext() if against is None else reference(against, folder, model, runtime) as other:
        reader = SessionReader(model)
        with ProgressBar() as progress:
            ours = measure(reader, progress)
        if other is None:
            return ours, None, reader.attention_sparsity
        with ProgressBar() as progress:
            theirs = measure(SessionReader(other, FULL, NONE, stepwise=reader.stepwise and against == "full"), progress)
    return ours, theirs, reader.attention_sparsity


def _scores(ours: Metrics, theirs: Metrics | None) -> dict[str, Score]:
    from edgerun.measure.tasks.score import scores

    return scores(ours, theirs)


def _echo(
    model: str,
    runtime: RuntimeOptions,
    against: str | None,
    figures: dict[str, Any],
    found: dict[str, Score],
    sparsity: float,
) -> None:
    metrics = {name: asdict(score) for name, score in found.items()}
    whole = described(model, runtime, against) | figures | {"metrics": metrics, "attention_sparsity": sparsity}
    click.echo(json.dumps(whole))


def _print(found: dict[str, Score], count: int, against: str | None, sparsity: float) -> None:
    click.echo(f"questions       {count}")
    for name, score in found.items():
        line = f"{name:<15} {score.mean:.4f} ± {score.stderr:.4f}"
        if score.against is not None:
            line += (
                f"   {against} {score.against:.4f}, difference {score.difference:+.4f} ± {score.difference_stderr:.4f}"
            )
        click.echo(line)
    if sparsity:
        click.echo(f"keys not read   {sparsity:.2%}")


def _print_cells(cells: list[Cell]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="needles found", title_justify="left")
    lengths = sorted({cell.length for cell in cells})
    for heading in ("depth", *(f"{length:,} tokens" for length in lengths)):
        table.add_column(heading, justify="right")
    for depth in sorted({cell.depth for cell in cells}):
        shares = {cell.length: f"{cell.found:.0%}" for cell in cells if cell.depth == depth}
        table.add_row(f"{depth:.0%}", *(shares[length] for length in lengths))
    Console().print(table)
