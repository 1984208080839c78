"""`edgerun pull`: makes a model ready to run, so that the first chat doesn't wait for it."""

from __future__ import annotations

import json

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import json_option
from edgerun.cli.options import model_argument, quant_option
from edgerun.cli.progress import ProgressBar
from edgerun.cli.terminal import folder_bytes


@command_("pull", "Fetch a model and make it ready.")
@model_argument
@quant_option
@json_option
def command(model: str, quant: str, as_json: bool) -> None:
    """Fetch MODEL and export it into the cache; print the package's folder.

    A repository of the Hugging Face Hub is brought to its newest revision.
    """
    from edgerun.sources import hub

    with ProgressBar() as progress:
        folder = hub.pull(model, quant=quant, progress=progress)
    if as_json:
        click.echo(json.dumps({"model": model, "path": str(folder), "bytes": folder_bytes(folder)}))
    else:
        click.echo(folder)
