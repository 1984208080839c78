"""What all commands share: --debug, --help, and options listed under headings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Function = TypeVar("Function", bound=Callable[..., Any])


class GroupedOption(click.Option):
    """An option that the help lists under a heading of its own."""

    def __init__(self, *declarations: Any, heading: str = "Options", **settings: Any) -> None:
        super().__init__(*declarations, **settings)
        self.heading = heading

    def get_help_extra(self, ctx: click.Context) -> Any:
        extra = super().get_help_extra(ctx)
        extra.pop("range", None)  # "x>=1" says little; who steps outside is told the range
        return extra


class Command(click.Command):
    """A command whose help lists options by heading."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        headings: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                headings.setdefault(getattr(parameter, "heading", "Options"), []).append(record)
        for heading, records in headings.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option(*declarations: str, heading: str = "Options", **settings: Any) -> Callable[[Function], Function]:
    """As `click.option`, with the heading that the help lists it under."""
    return click.option(*declarations, cls=GroupedOption, heading=heading, **settings)


def command(name: str, summary: str) -> Callable[[Function], click.Command]:
    """The decorator of every command; `summary` is what `edgerun --help` says of it."""

    def decorate(function: Function) -> click.Command:
        made = click.command(name, cls=Command, short_help=summary)(function)
        debug_option(made)
        return made

    return decorate


def numbers(low: int) -> Callable[[click.Context, click.Parameter, str | None], tuple[int, ...] | None]:
    """A callback that reads integers of at least `low`, separated by commas: 0,2048."""

    def read(ctx: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
        if text is None:
            return None
        try:
            numbers = tuple(int(part) for part in text.split(","))
        except ValueError:
            raise click.BadParameter(f"{text!r} is no list of integers like 1,2", ctx, parameter) from None
        if min(numbers) < low:
            raise click.BadParameter(f"{min(numbers)} is less than {low}", ctx, parameter)
        return numbers

    return read


def _set_debug(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and ctx.obj is not None:
        ctx.obj.append(True)  # the list that `main` looks into when it has caught something


debug_option = option(
    "--debug",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)
json_option = option("--json", "as_json", is_flag=True, help="Print one JSON object on standard output.")
