"""`edgerun eval`: how well a model predicts a text or does a task, and how near it is to another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from edgerun.cli.command import Function, json_option, numbers, option
from edgerun.cli.command import command as command_
from edgerun.cli.options import (
    RuntimeOptions,
    attention_option,
    cache_option,
    compute_option,
    model_argument,
    sparsity_option,
    threads_option,
    variant_option,
)

BELONGS = {
    "window": ("text",),
    "tokens": ("text",),
    "text": ("text", "needle"),
    "plot": ("text", "needle"),
    "lengths": ("needle",),
    "depths": ("needle",),
    "repeat": ("needle",),
    "data": ("choice", "qa"),
    "limit": ("choice", "qa"),
    "shots": ("choice", "qa"),
}
"""What each option is for: a task, or "text" without one."""


def _task(*declarations: str, **settings: Any) -> Callable[[Function], Function]:
    return option(*declarations, heading="Tasks", **settings)


@command_("eval", "Measure perplexity, tasks, and distance from another model.")
@model_argument
@option("--text", type=click.Path(path_type=Path), metavar="FILE", help="The text to predict, or to hide needles in.")
@option(
    "--against",
    metavar="full|exact|onnxruntime|MODEL",
    help="Compare with: the same arithmetic and full attention; the same package (and variant) in float32; the same "
    "package in onnxruntime; or another model.",
)
@option(
    "--context",
    "--ctx",
    "window",
    type=click.IntRange(2),
    metavar="N",
    help="Tokens in a window of the text; the second half of each window is scored.  [default: 512]",
)
@option("--tokens", type=click.IntRange(4), metavar="N", help="Only the first N tokens of the text.")
@option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also draw it (PNG or SVG): for a text by position, for needles by length and depth.",
)
@json_option
@_task("--task", type=click.Choice(["needle", "choice", "qa"]), help="Instead of a text: what the model shall do.")
@_task(
    "--data",
    metavar="NAME|FILE",
    help="The questions: boolq, piqa or openbookqa for choice, disflqa or narrativeqa for qa (fetched once), or a file "
    "of JSON lines.  [default: boolq, disflqa]",
)
@_task(
    "--limit",
    type=click.IntRange(1),
    default=200,
    show_default=True,
    metavar="N",
    help="Questions to ask, evenly from all.",
)
@_task(
    "--shots", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Examples before each question."
)
@_task(
    "--lengths",
    callback=numbers(16),
    default="1000,2000,4000",
    show_default=True,
    metavar="N,…",
    help="Tokens of the haystacks.",
)
@_task(
    "--depths",
    type=click.IntRange(1, 100),
    default=5,
    show_default=True,
    metavar="N",
    help="Depths to hide needles at.",
)
@_task(
    "--repeat",
    type=click.IntRange(1),
    default=2,
    show_default=True,
    metavar="N",
    help="Needles of each length and depth.",
)
@threads_option
@compute_option
@cache_option
@variant_option
@attention_option
@sparsity_option
@click.pass_context
def command(
    ctx: click.Context,
    model: str,
    text: Path | None,
    against: str | None,
    window: int | None,
    tokens: int | None,
    plot: Path | None,
    as_json: bool,
    task: str | None,
    data: str | None,
    limit: int,
    shots: int,
    lengths: tuple[int, ...],
    depths: int,
    repeat: int,
    threads: int | None,
    compute: Any,
    cache: Any,
    variant: str | None,
    attention: str | None,
    sparsity: str | None,
) -> None:
    """Perplexity of MODEL on a text, counted as llama.cpp's llama-perplexity counts it; or its score in a task.

    The text is cut into windows of N tokens; in each, the tokens of the second half are predicted from all that come
    before them in the window. With --against, also the mean KL divergence (in nats, from the other model to MODEL) and
    how often both find the same token likeliest. With a policy that acts in decoding alone (DELTA, --sparsity), what is
    scored is decoded token by token.

    Tasks: "needle" hides numbers in long texts and asks for them; "choice" takes the likeliest of several answers; "qa"
    answers questions about a passage (F1 and exact match). All scores come with standard errors; with --against, the
    difference to the other model on the same questions too. A file for --data has one JSON object a line:

    \b
    choice  {"passage": "…" (may be missing), "question": "…", "choices": ["…", …], "answer": 0}
            or as BoolQ and WinoGrande are published
    qa      {"passage": "…", "question": "…", "answers": ["…", …]}, or as SQuAD is on the Hub
    """
    from edgerun.cli import eval_task, eval_text
    from edgerun.measure import plots

    for name, places in BELONGS.items():
        given = ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
        if given and (task or "text") not in places:
            parameter = next(p for p in ctx.command.params if p.name == name)
            raise click.UsageError(f"{parameter.opts[0]} is not for {f'--task {task}' if task else 'a text'}", ctx)
    if task is None and text is None:
        raise click.UsageError("give a text to predict (--text FILE), or a task (--task NAME)", ctx)
    if plot is not None:
        plots.check(plot)
    runtime = RuntimeOptions(threads, None, compute, cache, variant, attention, sparsity)
    if task is None:
        assert text is not None
        eval_text.run(model, runtime, against, text, window or 512, tokens, plot, as_json)
    elif task == "needle":
        eval_task.needle(model, runtime, against, text, lengths, depths, repeat, plot, as_json)
    else:
        eval_task.questions(model, runtime, against, task, data, limit, shots, as_json)
