"""`edgerun calibrate`: finds what attention may leave out at a stated cost, and keeps it in the package."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import json_option, option
from edgerun.cli.options import model_argument, threads_option
from edgerun.cli.progress import ProgressBar, resolve
from edgerun.cli.text_input import read_text

if TYPE_CHECKING:
    from edgerun.attention.settings import Setting

ACTIVATIONS = "activations"


@command_("calibrate", "Find what attention may leave out at a stated cost.")
@model_argument
@option("--text", type=click.Path(path_type=Path), required=True, metavar="FILE", help="Prose to calibrate on (UTF-8).")
@option(
    "--budget-kl",
    type=float,
    default=0.02,
    show_default=True,
    metavar="X",
    help="The most that a setting may cost: mean KL divergence from exact attention, in nats a token.",
)
@option(
    "--context",
    "--ctx",
    "context",
    type=int,
    metavar="N",
    help="Tokens to calibrate with.  [default: 4096, or what model and text have]",
)
@option(
    "--policy",
    "policies",
    type=click.Choice(["deltallm", "deltallm-element", "delta", "both", ACTIVATIONS]),
    multiple=True,
    help="What to calibrate; may be given several times. activations: for --sparsity.  "
    "[default: deltallm, delta, and both together]",
)
@json_option
@threads_option
def command(
    model: str,
    text: Path,
    budget_kl: float,
    context: int | None,
    policies: tuple[Any, ...],
    as_json: bool,
    threads: int | None,
) -> None:
    """Calibrate sparse attention, or activation sparsity, for MODEL and write the settings into its package.

    The first half of the text is searched, costs are measured on the second. Afterwards `--quality X`, wherever a
    model runs, takes the settings that read least and together cost at most X; `--attention deltallm` and `delta` need
    no parameters. Longer texts may cost more: calibrate with the context that you use. An interrupted calibration goes
    on where it was.
    """
    from edgerun.calibration.activations import calibrate_package
    from edgerun.calibration.calibrate import POLICIES, calibrate

    content = read_text(text)
    folder = resolve(model)
    settings: list[Setting] = []
    points: list[dict[str, Any]] = []
    asked = [policy for policy in policies or POLICIES if policy != ACTIVATIONS]
    with ProgressBar() as progress:
        if asked:
            settings = calibrate(
                folder,
                content,
                budget_kl=budget_kl,
                context=context,
                policies=asked,
                threads=threads,
                progress=progress,
            )
        if ACTIVATIONS in policies:
            points = calibrate_package(folder, content, budget_kl=budget_kl, threads=threads, progress=progress)
    if as_json:
        report = {"model": model, "budget_kl": budget_kl, "settings": [_report(s) for s in settings]}
        click.echo(json.dumps(report | {ACTIVATIONS: points}))
    elif not (settings or points):
        click.echo(f"nothing can be left out within {budget_kl:g} nats a token; try a larger --budget-kl")
    else:
        _print(settings)
        for point in points:
            click.echo(
                f"{ACTIVATIONS}: mean KL {point['kl']:.5f}, {point['weight_bytes_skipped']:.1%} of weights unread, "
                f"{point['weight_time_saved']:.1%} of their time saved"
            )


def _report(setting: Setting) -> dict[str, Any]:
    names = ("policy", "context", "kl", "perplexity", "exact_perplexity", "sparsity", "read_share")
    return {name: getattr(setting, name) for name in names}


def _print(settings: list[Setting]) -> None:
    if not settings:
        return
    click.echo("policy             context  mean KL   perplexity (exact)  keys left out  keys read")
    for s in settings:
        click.echo(
            f"{s.policy:<18} {s.context:7}  {s.kl:.5f}  {s.perplexity:11.3f} ({s.exact_perplexity:.3f})  "
            f"{s.sparsity:13.1%}  {s.read_share:9.1%}"
        )
