"""The group `edgerun`: finds the commands, and imports only the one that is called."""

from __future__ import annotations

from importlib import import_module

import click

from edgerun import __version__
from edgerun.cli.command import debug_option

NAMES = ("chat", "run", "pull", "export", "info", "cache", "bench", "eval", "calibrate", "variant")


SETTINGS: dict[str, object] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class LazyGroup(click.Group):
    """A group whose commands are `edgerun.cli.NAME.command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(NAMES)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in NAMES:
            return None
        command = import_module(f"edgerun.cli.{name}").command
        assert isinstance(command, click.Command)
        return command


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"edgerun {__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, invoke_without_command=True, context_settings=SETTINGS)
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@debug_option
@click.pass_context
def commands(ctx: click.Context) -> None:
    """Runs language models on the processor, from ONNX packages.

    MODEL, wherever it stands, is a catalogue name (smollm2), a model package's folder, a GGUF file, a folder of
    safetensors, or a Hugging Face repository (owner/name). A checkpoint is exported once, into the cache.
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())
