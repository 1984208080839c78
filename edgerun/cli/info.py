"""`edgerun info`: what is in a model package."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from edgerun.cli.command import command as command_
from edgerun.cli.command import json_option, option
from edgerun.cli.options import model_argument
from edgerun.cli.progress import resolve
from edgerun.cli.terminal import human_bytes

if TYPE_CHECKING:
    from edgerun.program.open import Package

_PARTS = ("embedding", "attention", "mlp", "norm", "output head", "other")


@dataclass(frozen=True)
class Weight:
    """One matrix or vector: `shape` is the model's, `bytes` what it takes in the file, padding included."""

    name: str
    part: str
    format: str
    shape: tuple[int, ...]
    bytes: int


@command_("info", "Show what is in a model package.")
@model_argument
@option("--tensors", is_flag=True, help="List every tensor.")
@json_option
def command(model: str, tensors: bool, as_json: bool) -> None:
    """Show what is in MODEL's package: shapes, formats, sizes, and where it came from."""
    from edgerun.program.open import open_package

    folder = resolve(model)
    package = open_package(folder)
    found = weights(package)
    if as_json:
        report = {
            "path": str(folder),
            "bytes": package.bytes,
            **asdict(package.config),
            "weights": sum(math.prod(weight.shape) for weight in found),
            "kinds": _kinds(found),
        }
        if tensors:
            report["tensors"] = [asdict(weight) for weight in found]
        click.echo(json.dumps(report, ensure_ascii=False))
    else:
        _print(package, found, tensors)


def weights(package: Package) -> list[Weight]:
    """Every weight of the graph, once, in the order of use. Bytes and shapes are computed from the graph alone."""
    from edgerun.package.layout import public_name
    from edgerun.package.operators import OPERATORS

    sizes = {tensor.name: package.tensor(tensor.name).nbytes for tensor in package.graph.initializer}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in package.graph.initializer}
    found = []
    for node in package.graph.node:
        mine = [name for name in node.input if name in sizes]
        if not mine:
            continue
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        operator = OPERATORS.get(node.op_type)
        matrix = public_name(operator.weights) if operator and operator.weights else None
        found.append(
            Weight(
                name=mine[0].rpartition(".")[0] if matrix else mine[0],
                part=_part(node.name, node.op_type),
                format=matrix or "f32",
                shape=(attributes["N"], attributes["K"]) if matrix else shapes[mine[0]],
                bytes=sum(sizes.pop(name) for name in mine),
            )
        )
    return found


def _part(name: str, op_type: str) -> str:
    if op_type.startswith("Embed"):
        return "embedding"
    if op_type == "RMSNormalization":
        return "norm"
    if ".attention." in name:
        return "attention"
    if ".mlp." in name:
        return "mlp"
    return "output head" if op_type.startswith("Linear") else "other"


def _kinds(found: list[Weight]) -> list[dict[str, Any]]:
    """Tensors, weights and bytes of each part in each format."""
    keys = sorted({(weight.part, weight.format) for weight in found}, key=lambda key: (_PARTS.index(key[0]), key[1]))
    kinds = []
    for part, format in keys:
        mine = [weight for weight in found if (weight.part, weight.format) == (part, format)]
        kinds.append(
            {
                "part": part,
                "format": format,
                "tensors": len(mine),
                "weights": sum(math.prod(weight.shape) for weight in mine),
                "bytes": sum(weight.bytes for weight in mine),
            }
        )
    return kinds


def _print(package: Package, found: list[Weight], tensors: bool) -> None:
    from edgerun.attention.settings import read_settings
    from edgerun.package.reader import CONFIG

    config = package.config
    source = dict(config.source)
    where = source.get("repo") or source.get("file")
    for label, text in (
        ("name", config.name),
        ("path", str(package.folder)),
        (
            "family",
            f"{config.family}, {config.n_layers} layers, hidden {config.hidden_size}, MLP {config.intermediate_size}",
        ),
        ("attention", f"{config.n_heads} heads, {config.n_kv_heads} for keys and values, of {config.head_dim}"),
        ("vocabulary", f"{config.vocab_size} tokens" + (", head tied to embedding" if config.tied_embeddings else "")),
        ("context", f"{config.context_length} tokens"),
        ("source", f"{where} ({source.get('format')}, sha256 {source.get('sha256')})"),
        ("made by", f"{config.tool}, format version {config.format_version}"),
        ("size", f"{human_bytes(package.bytes)}, {sum(math.prod(w.shape) for w in found) / 1e6:.1f} M weights"),
    ):
        click.echo(f"{label:<11} {text}")
    for note in config.quantisation.get("notes", []):
        click.echo(f"{'note':<11} {note}")
    for setting in read_settings(config, package.folder / CONFIG):
        cost = f"{setting.context} tokens, mean KL {setting.kl:.5f}, {setting.read_share:.1%} of the keys read"
        click.echo(f"{'calibrated':<11} {setting.policy}: {cost}")
    click.echo()
    _table([(k["part"], k["format"], str(k["tensors"]), human_bytes(k["bytes"])) for k in _kinds(found)], "<<>>")
    if tensors:
        click.echo()
        _table([(w.name, w.format, "×".join(map(str, w.shape)), human_bytes(w.bytes)) for w in found], "<<>>")


def _table(rows: list[tuple[str, ...]], align: str) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:{a}{width}}" for cell, a, width in zip(row, align, widths, strict=True)).rstrip())
