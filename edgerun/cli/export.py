"""`edgerun export`: a checkpoint becomes a model package."""

from __future__ import annotations

import json
from pathlib import Path

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import json_option
from edgerun.cli.options import quant_option
from edgerun.cli.progress import ProgressBar
from edgerun.cli.terminal import human_bytes


@command_("export", "Make a model package from a checkpoint.")
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@quant_option
@click.option(
    "--compact",
    is_flag=True,
    help="Ternary layers in 1.67 bits a weight instead of 2: a tenth less memory; slower where there is no AVX-512.",
)
@json_option
def command(checkpoint: Path, out: Path, quant: str, compact: bool, as_json: bool) -> None:
    """Turn CHECKPOINT (a GGUF file, or a folder with safetensors) into the model package OUT.

    An older package at OUT is replaced once the new one is whole.
    """
    from edgerun_exporters import export

    with ProgressBar() as progress:
        report = export(checkpoint, out, quant=quant, compact=compact, progress=progress)
    if as_json:
        click.echo(
            json.dumps(
                {"path": str(out), "bytes": report.bytes, "tensors": report.tensors, "notes": list(report.notes)},
                ensure_ascii=False,
            )
        )
        return
    click.echo(f"{out}: {report.tensors} tensors, {human_bytes(report.bytes)}")
    for note in report.notes:
        click.echo(f"note: {note}")
