"""`edgerun bench`: how fast a model runs on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    variant_option,
)
from edgerun.cli.progress import ProgressBar, resolve
from edgerun.cli.terminal import human_bytes

if TYPE_CHECKING:
    from edgerun.measure.benchmark import Result
    from edgerun.measure.profile import KindTime


def _count(name: str, default: int, help: str) -> Callable[[Function], Function]:
    return option(name, type=click.IntRange(1), default=default, show_default=True, metavar="N", help=help)


@command_("bench", "Measure the speed of a model here.")
@model_argument
@_count("--prompt", 512, "Tokens to prefill.")
@_count("--gen", 128, "Tokens to decode.")
@option(
    "--depth",
    "depths",
    callback=numbers(0),
    default="0",
    show_default=True,
    metavar="N,…",
    help="Tokens already in the cache; several are measured one after the other.",
)
@option(
    "--parallel",
    callback=numbers(1),
    default="1",
    show_default=True,
    metavar="N,…",
    help="Sequences that decode together; likewise. Tokens a second are those of all.",
)
@option(
    "--threads", callback=numbers(1), metavar="N,…", help="Threads to compute with; likewise.  [default: one a core]"
)
@_count("--repeat", 3, "Measure so often, and report medians.")
@option("--profile", is_flag=True, help="Also show where the time of a decoded token goes.")
@option(
    "--report",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Also write what was measured, and on which machine, to attach to an issue.",
)
@json_option
@option(
    "--ctx",
    "context",
    type=click.IntRange(1),
    metavar="N",
    heading="Machine",
    help="Tokens to have room for.  [default: as many as are measured]",
)
@compute_option
@cache_option
@variant_option
@attention_option
@sparsity_option
def command(
    model: str,
    prompt: int,
    gen: int,
    depths: tuple[int, ...],
    parallel: tuple[int, ...],
    threads: tuple[int, ...] | None,
    repeat: int,
    profile: bool,
    report: Path | None,
    as_json: bool,
    context: int | None,
    compute: Any,
    cache: Any,
    variant: str | None,
    attention: str | None,
    sparsity: str | None,
) -> None:
    """Measure prefill and decode of MODEL with random tokens, as llama-bench does, and how fast memory can be read."""
    from edgerun.cli import bench_report
    from edgerun.errors import OptionError
    from edgerun.measure import board
    from edgerun.measure.benchmark import Plan, benchmark
    from edgerun.model import default_threads
    from edgerun.package.config import read_config

    plan = Plan(prompt, gen, depths, repeat, profile, parallel)
    if report is not None:
        bench_report.check_writable(report)
    folder = str(resolve(model))
    room = context or plan.context
    limit = min(room, read_config(Path(folder) / "edgerun.json").context_length)
    if plan.context > limit:
        raise OptionError(
            f"depth {max(depths)} and prompt or gen {max(prompt, gen)} want {plan.context} tokens, but the context has "
            f"{limit}; measure less"
        )

    def load(count: int) -> Any:
        return RuntimeOptions(count, room, compute, cache, variant, attention, sparsity).load(folder)

    before = board.state()
    with ProgressBar() as progress:
        results = benchmark(load, threads or (default_threads(),), plan, progress)
    if report is not None:
        title = f"{_called(model, variant)}, prefill {prompt}, decode {gen}, medians of {repeat}"
        report.write_text(bench_report.text(title, results, before, board.state()), encoding="utf-8")
    fastest = max(result.memory_read_gb_per_s for result in results)
    if as_json:
        figures = {
            "model": model,
            "prompt": prompt,
            "gen": gen,
            "repeat": repeat,
            "compute": compute,
            "cache_type": cache,
            "variant": variant,
            "attention": attention,
            "sparsity": sparsity,
            "memory_read_gb_per_s": fastest,
            "results": [_report(result) for result in results],
        }
        click.echo(json.dumps(figures))
    else:
        _print(_called(model, variant), plan.prompt, plan.gen, results)
        for result in results:
            if result.profile is not None:
                _print_profile(result, result.profile)


def _called(model: str, variant: str | None) -> str:
    return model if variant is None else f"{model} with {variant}"


def _report(result: Result) -> dict[str, Any]:
    report = asdict(result)
    if result.profile is None:
        del report["profile"]
    return report


def _print(model: str, prompt: int, gen: int, results: list[Result]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{model}: prefill {prompt}, decode {gen}", title_justify="left")
    together = any(result.parallel > 1 for result in results)
    for heading in (
        "threads",
        "depth",
        *["parallel"] * together,
        "prefill\ntokens/s",
        "decode\ntokens/s",
        "first token\ns",
        "peak RSS",
        "memory read\nGB/s",
    ):
        table.add_column(heading, justify="right")
    for result in results:
        table.add_row(
            str(result.threads),
            str(result.depth),
            *[str(result.parallel)] * together,
            f"{result.prefill_tokens_per_s:.1f}",
            f"{result.decode_tokens_per_s:.1f}",
            f"{result.first_token_s:.3f}",
            human_bytes(result.peak_rss_bytes),
            f"{result.memory_read_gb_per_s:.1f}",
        )
    Console().print(table)


def _print_profile(result: Result, kinds: list[KindTime]) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"a decoded token: {result.threads} threads, depth {result.depth}"
    table = Table(title=title, title_justify="left")
    table.add_column("operation")
    sparse = any(kind.columns_skipped is not None for kind in kinds)
    for heading in ("µs", "of the time", "read", "GB/s", "of memory's", *["columns skipped"] * sparse):
        table.add_column(heading, justify="right")
    for kind in kinds:
        if kind.kind == "all":
            table.add_section()
        read = (human_bytes(kind.bytes_read), f"{kind.gb_per_s:.1f}", f"{kind.share_of_bandwidth:.0%}")
        row = [kind.kind, f"{kind.us:.0f}", f"{kind.share:.1%}", *(read if kind.bytes_read else ("", "", ""))]
        if sparse:
            row.append("" if kind.columns_skipped is None else f"{kind.columns_skipped:.1%}")
        table.add_row(*row)
    Console().print(table)
