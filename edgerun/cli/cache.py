"""`edgerun cache`: how much the cache holds, and how to be rid of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import json_option, option
from edgerun.cli.terminal import human_bytes

if TYPE_CHECKING:
    from edgerun.sources.cache import CacheEntry


@command_("cache", "List or clear the cache.")
@click.argument("action", type=click.Choice(["list", "clear"]), default="list")
@click.argument("name", required=False)
@option("--yes", is_flag=True, help="Clear without asking.")
@json_option
def command(action: str, name: str | None, yes: bool, as_json: bool) -> None:
    """List what the cache holds, or clear it.

    \b
      edgerun cache               what is there, and how large
      edgerun cache clear NAME    delete one model, with its download
      edgerun cache clear         delete everything

    The cache lies in EDGERUN_CACHE, or in the user's cache folder.
    """
    from edgerun.sources import cache

    if action == "list":
        if name is not None:
            raise click.UsageError("list takes no NAME")
        found = cache.entries()
    else:
        question = f"Delete {name}?" if name else f"Delete all {human_bytes(sum(e.bytes for e in cache.entries()))}?"
        if not yes:
            click.confirm(question, abort=True, err=True)
        found = cache.clear(name)
    if as_json:
        click.echo(json.dumps({"path": str(cache.cache_root()), "entries": [_entry(entry) for entry in found]}))
    elif action == "list":
        _print(found)
    else:
        click.echo(f"{human_bytes(sum(entry.bytes for entry in found))} freed")


def _entry(entry: CacheEntry) -> dict[str, object]:
    return {
        "kind": entry.kind,
        "name": entry.name,
        "label": entry.label,
        "path": str(entry.path),
        "bytes": entry.bytes,
        "modified_s": entry.modified,
    }


def _print(found: list[CacheEntry]) -> None:
    from edgerun.sources.cache import cache_root

    rows = [(entry.kind, entry.name, human_bytes(entry.bytes)) for entry in found]
    rows.append(("", str(cache_root()), human_bytes(sum(entry.bytes for entry in found))))
    kinds, names, sizes = (max(len(row[i]) for row in rows) for i in range(3))
    for kind, name, size in rows:
        click.echo(f"{kind:<{kinds}}  {name:<{names}}  {size:>{sizes}}")
