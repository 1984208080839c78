"""`edgerun variant`: fine-tuned models as small sparse deltas; a group of commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.command import Function, json_option
from edgerun.cli.command import command as command_
from edgerun.cli.terminal import human_bytes
from edgerun.errors import EdgerunError

if TYPE_CHECKING:
    from edgerun.variants.store import Variant

ELSEWHERE = {"create": "edgerun.cli.variant_create", "merge": "edgerun.cli.variant_merge"}
"""Subcommands with a module of their own, imported when they are called."""


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*self.commands, *ELSEWHERE])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in ELSEWHERE:
            found = import_module(ELSEWHERE[name]).command
            assert isinstance(found, click.Command)
            return found
        return self.commands.get(name)


@click.group("variant", cls=_Group, short_help="Fine-tuned models as small deltas to a base.")
def command() -> None:
    """Fine-tuned variants of a base model, each a small file of sparse deltas.

    VARIANT is a file, or a name: that of a file in the cache's folder variants/. Any command that runs a model takes
    --variant.
    """


def _subcommand(name: str, summary: str) -> Callable[[Function], click.Command]:
    def decorate(function: Function) -> click.Command:
        made = command_(name, summary)(function)
        command.add_command(made)
        return made

    return decorate


@_subcommand("list", "List the variants that have a name.")
@json_option
def list_(as_json: bool) -> None:
    """List the variants that have a name."""
    from edgerun.variants import library
    from edgerun.variants.store import open_variant

    rows: list[dict[str, Any]] = []
    for name, path in library.listed().items():
        try:
            variant = open_variant(path)
            rows.append({"name": name, "method": variant.method, "bytes": variant.bytes, "base": variant.base})
        except EdgerunError as error:
            rows.append({"name": name, "error": str(error)})
    if as_json:
        click.echo(json.dumps({"path": str(library.folder()), "variants": rows}, ensure_ascii=False))
        return
    for row in rows:
        click.echo(row.get("error") or f"{row['name']}  {row['method']}  {human_bytes(row['bytes'])}")
    if not rows:
        click.echo(f"no variants in {library.folder()}; make one with `edgerun variant create`", err=True)


@_subcommand("info", "Show what a variant is.")
@click.argument("variant")
@json_option
def info(variant: str, as_json: bool) -> None:
    """Show how VARIANT was made, what it changes and how large it is."""
    found = _open(variant)
    report = {"path": str(found.path), **describe(found)}
    if as_json:
        click.echo(json.dumps(report, ensure_ascii=False))
        return
    for key, value in report.items():
        shown = human_bytes(value) if key == "bytes" else _shown(value)
        if shown:
            click.echo(f"{key:<18} {shown}")


@_subcommand("verify", "Check a variant file.")
@click.argument("variant")
@click.argument("model", required=False)
def verify(variant: str, model: str | None) -> None:
    """Check VARIANT: its checksum, every position and scale; with MODEL, also that it is a variant of that."""
    found = _open(variant)
    if model is not None:
        from edgerun.cli.progress import resolve
        from edgerun.model import Model

        with Model(resolve(model), threads=1, context=1) as loaded:
            loaded.variants.open(found.path)
    fits = "" if model is None else f", a variant of {model}"
    click.echo(f"{found.path}: sound{fits}")


def _open(variant: str) -> Variant:
    from edgerun.variants import library
    from edgerun.variants.store import open_variant

    return open_variant(Path(library.find(variant)))


def describe(variant: Variant) -> dict[str, Any]:
    """What `edgerun variant info` says of a variant."""
    weights = sum(math.prod(coded.shape) for coded in variant.matrices.values())
    kept = sum(len(variant.delta(name).values) for name in variant.matrices)
    bits = sorted({coded.bits for coded in variant.matrices.values()})
    return {
        "method": variant.method,
        "parameters": dict(variant.parameters),
        "quality": dict(variant.quality),
        "base": variant.base,
        "bytes": variant.bytes,
        "matrices": len(variant.matrices),
        "vectors": len(variant.vectors),
        "elements": kept,
        "density": kept / weights if weights else 0.0,
        "value_bits": bits,
    }


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shown(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
