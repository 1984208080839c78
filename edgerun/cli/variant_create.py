"""`edgerun variant create`: the delta between two models becomes a variant file."""

from __future__ import annotations

import json
import math
from pathlib import Path

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import json_option, option
from edgerun.cli.progress import ProgressBar
from edgerun.cli.terminal import human_bytes
from edgerun.cli.text_input import read_text
from edgerun.errors import OptionError

METHODS = ("auto", "dare", "darex-q", "darex-q-layers", "magnitude", "wanda", "structural")


@command_("create", "Make a variant file from a base and a fine-tuned model.")
@click.argument("base")
@click.argument("finetuned")
@click.argument("out", type=click.Path(path_type=Path))
@option("--method", type=click.Choice(METHODS), default="auto", show_default=True, help="How the delta becomes sparse.")
@option(
    "--drop", type=float, default=0.95, show_default=True, metavar="P", help="Share of the delta's elements to drop."
)
@option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the random masks.")
@option("--q", type=float, metavar="Q", help="DAREx-q's divisor, instead of finding one.")
@option(
    "--text",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="What activations and outputs are measured on: text as the variant will see it.",
)
@option(
    "--labels",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help='Examples to choose q by: JSON lines {"prompt": …, "answer": …}.',
)
@option("--bits", type=click.Choice(["4", "8"]), default="4", show_default=True, help="Of the stored values.")
@option("--quality", multiple=True, metavar="NAME=VALUE", help="A score that you measured, to keep in the file.")
@json_option
def command(
    base: str,
    finetuned: str,
    out: Path,
    method: str,
    drop: float,
    seed: int,
    q: float | None,
    text: Path | None,
    labels: Path | None,
    bits: str,
    quality: tuple[str, ...],
    as_json: bool,
) -> None:
    """Write what fine-tuning changed in BASE as the variant OUT: a small file, for `--variant`.

    BASE and FINETUNED are models as everywhere (a name, a GGUF file, safetensors, a package); FINETUNED may be the
    folder of a PEFT LoRA adapter. The delta is taken between their original weights, so that OUT goes with BASE in any
    quantisation.

    \b
      dare            keep elements by chance, rescaled by 1 / (1 - p)
      darex-q         the same, rescaled by 1 / q: q by labels, or by the outputs on a text
      darex-q-layers  the same, a q for each layer by the analytic rule
      magnitude       keep the largest elements of each row
      wanda           keep those that change outputs most
      structural      keep whole input columns by chance
      auto            follow the decisions of the DAREx paper
    """
    from edgerun_exporters.variants import create
    from edgerun_exporters.variants.batch import read_examples

    with ProgressBar() as progress:
        report = create(
            base,
            finetuned,
            out,
            method=method,
            drop=drop,
            seed=seed,
            q=q,
            text=None if text is None else read_text(text),
            labels=read_examples(labels) if labels else (),
            quality=dict(_measured(entry) for entry in quality),
            bits=int(bits),
            progress=progress,
        )
    if as_json:
        found = {"path": str(out), "method": report.method, "parameters": report.parameters, "quality": report.quality}
        sizes = {"bytes": report.bytes, "share_of_bf16": report.share, "kept": report.kept, "elements": report.elements}
        click.echo(json.dumps({**found, **sizes, "notes": report.notes}, ensure_ascii=False))
        return
    share = report.kept / report.elements if report.elements else 0.0
    click.echo(
        f"{out}: {report.method}, {report.kept} of {report.elements} elements ({share:.1%}), "
        f"{human_bytes(report.bytes)} ({report.share:.1%} of the fine-tuned model in bfloat16)"
    )
    for note in report.notes:
        click.echo(f"note: {note}")


def _measured(entry: str) -> tuple[str, object]:
    """NAME=VALUE; a number where it is one."""
    name, sign, value = entry.partition("=")
    if not name or not sign:
        raise OptionError(f"--quality {entry}: must be NAME=VALUE, such as exact_match=0.93")
    try:
        number = float(value)
    except ValueError:
        return name, value
    return name, number if math.isfinite(number) else value
